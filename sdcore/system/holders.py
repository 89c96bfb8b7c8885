"""Which process holds a file, as far as the system says."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCKS = Path("/proc/locks")  # Linux only
LOOK = 1.0  # seconds between two looks whether to stop waiting


def lock_holder(path: Path) -> int | None:
    """Return the id of the process that has locked a file, or None where that is not known."""
    with suppress(OSError):
        inode = str(path.stat().st_ino)
        for line in LOCKS.read_text().splitlines():
            # "1: FLOCK  ADVISORY  WRITE 4711 08:02:131085 0 EOF"; who waits has "->" after "1:"
            fields = line.split()
            if len(fields) > 5 and fields[1] != "->" and fields[5].rpartition(":")[2] == inode:
                return int(fields[4])
    return None


def described(pid: int | None, name: str = "") -> str:
    """Return how a message names a process, such as "python3 (pid 4711)"."""
    if pid is None or pid <= 0:  # of another container, whose processes are not ours to see
        return "another process"
    with suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    return f"{name or 'a process'} (pid {pid})"


def wait_for(
    lock: FileLock, work: str, say: Callable[[str], None], look: Callable[[], None] = lambda: None
) -> None:
    """Acquire a lock, however long another process holds it; say once whom it waits for.

    Args:
        lock: to be acquired.
        work: what its holder does, such as `works on base`.
        say: takes the line.
        look: called once a second while it waits; may raise, to stop.
    """
    said = False
    while True:
        try:
            lock.acquire(timeout=LOOK)
            return
        except Timeout:
            if not said:
                say(f"waiting: {described(lock_holder(Path(lock.lock_file)))} {work}")
                said = True
            look()
