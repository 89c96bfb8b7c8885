"""One process at a time works on a condition and seed."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from sdcore.errors import StoreError
from tasks.run.condition_run import ConditionRun


@contextmanager
def run_lock(run: ConditionRun) -> Iterator[None]:
    """Hold a condition and seed while the block runs; the system frees the lock of a killed one.

    Raises:
        StoreError: another process holds it.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{run.folder}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"{run.label} is at work in another process",
            where=f"{run.folder}.lock",
            fix="wait until that one ends, or stop it; then the same command finds what it did",
        ) from error
    try:
        yield
    finally:
        lock.release()
