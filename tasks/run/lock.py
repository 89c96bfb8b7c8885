"""One process at a time works on a lineage; whoever comes second finds it done."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from filelock import FileLock, Timeout

from tasks.run.interrupts import stop_if_asked
from tasks.run.lineage import Lineage
from tasks.run.progress import note


@contextmanager
def turn(lineage: Lineage) -> Iterator[None]:
    """Hold a lineage while the block runs, once no other process does; the system frees it for one
    that is killed. All that the block gave to the tables is on disk before the next one's turn.

    Raises:
        Stopped: Ctrl-C was pressed while waiting.
    """
    lineage.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{lineage.folder}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        note(f"{lineage.label} is at work in another process; waiting until that is done")
        _wait(lock)
    with ExitStack() as last:
        last.callback(lock.release)
        last.callback(lineage.store.flush)
        yield


def _wait(lock: FileLock) -> None:
    while not lock.is_locked:
        stop_if_asked()
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            continue
