"""One process at a time works on a condition and seed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdcore.errors import StoreError
from sdcore.system import holders
from sdcore.system.holders import described, lock_holder
from tasks.run.condition_run import ConditionRun
from tasks.run.progress import note


class HeldError(StoreError):
    """Another process is at work on the condition and seed."""


@contextmanager
def run_lock(run: ConditionRun, *, wait: bool = False) -> Iterator[None]:
    """Hold a condition and seed while the block runs; the system frees the lock of a killed one.

    Args:
        run: the condition and seed.
        wait: for another process that holds it, for as long as that takes.

    Raises:
        HeldError: another process holds it, and `wait` is false.
        Stopped: Ctrl-C was pressed while waiting.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{run.folder}.lock")
    if wait:
        wait_for(lock, run, run.label)
    else:
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise HeldError(
                f"{run.label} is at work in another process",
                got=described(lock_holder(Path(lock.lock_file))),
                where=lock.lock_file,
                fix="wait until that one ends, or stop it; then the same command finds what it did",
            ) from error
    try:
        yield
    finally:
        lock.release()


def done_if_free(run: ConditionRun, work: Callable[[ConditionRun], object]) -> bool:
    """Do the work under the run's lock, unless another process holds it; return whether it did."""
    try:
        with run_lock(run):
            work(run)
    except HeldError:
        return False
    return True


def wait_for(lock: FileLock, run: ConditionRun, work: str) -> None:
    """Acquire a lock of the workspace, however long another process holds it; say whom for.

    Args:
        lock: to be acquired.
        run: whose session may be stopped.
        work: what the lock is for, such as `base`.

    Raises:
        Stopped: Ctrl-C was pressed.
    """
    holders.wait_for(lock, f"works on {work}", note, run.session.interrupts.stop_if_asked)
