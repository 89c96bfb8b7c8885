"""`sdcore doctor --repair`: what is damaged goes aside, and what takes its place is made.

Nothing is deleted: a damaged file or folder stays beside the new one, with `damaged` in its name.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from flows.doctor.workspace import SERVERS, TABLES_FILE, checked_checkpoints, sqlite_fault
from sdcore.errors import SdcoreError, StoreBusyError, StoreError
from sdcore.store.check import check
from sdcore.store.database import Store
from sdcore.store.export import exported

LOCK_SECONDS = 10


def repair(root: Path, exports: Sequence[str]) -> Iterator[str]:
    """Repair what can be repaired, and yield a line for each thing done.

    The tables are rebuilt from exports only, since rows that a run stores belong together: a file
    of which some tables can be read is not taken over in parts.

    Args:
        root: the workspace.
        exports: folders or addresses that `sdcore export` wrote, one for each run.

    Raises:
        SdcoreError: the workspace is in use, or an export cannot be read. What was done before
            stays done.
    """
    if not root.is_dir():
        return
    yield from _tables(root / TABLES_FILE, exports)
    for path in SERVERS.values():
        yield from _database(root / path)
    if _readable(root / TABLES_FILE):
        yield from _checkpoints(root)


def _tables(path: Path, exports: Sequence[str]) -> Iterator[str]:
    fault = _fault(path)
    if not exports:
        return
    if not fault and path.exists() and any(each.rows for each in check(path)):
        yield f"{path} is whole: nothing to rebuild"
        return
    fresh = path.with_name(f"{path.name}.rebuilt")
    for each in (fresh, _log(fresh)):
        each.unlink(missing_ok=True)  # of a repair that was stopped
    with Store(fresh) as store:
        for target in exports:
            store.append_missing(**exported(target))
    if wrong := _fault(fresh):
        raise StoreError("the rebuilt tables are damaged", got=wrong, where=str(fresh))
    try:
        with FileLock(f"{path}.lock", mode=0o600, timeout=LOCK_SECONDS):
            # The log goes first: beside the new file it would be taken for that one's.
            for each in (_log(path), path):
                if each.exists():
                    yield f"{each} moved to {_aside(each)}"
            fresh.replace(path)
    except Timeout as error:
        raise _in_use(path) from error
    Path(f"{fresh}.lock").unlink(missing_ok=True)
    rows = ", ".join(f"{each.name}: {each.rows}" for each in check(path) if each.rows)
    yield f"{path} rebuilt from {', '.join(exports)}: {rows}; superseded rows are not exported"


def _fault(path: Path) -> str:
    """Return the fault of the tables, or nothing.

    Raises:
        StoreBusyError: another process holds them.
    """
    if not path.exists():
        return ""
    try:
        return "; ".join(f"{each.name} {each.fault}" for each in check(path) if each.fault)
    except StoreBusyError:
        raise
    except StoreError as error:
        return str(error.got)


def _readable(path: Path) -> bool:
    """Return whether the policies are known, with whose digests checkpoints are compared."""
    try:
        return path.exists() and not any(
            each.fault for each in check(path) if each.name in ("policies", "stops")
        )
    except StoreError:
        return False


def _database(path: Path) -> Iterator[str]:
    try:
        damaged = path.exists() and bool(sqlite_fault(path))
    except sqlite3.OperationalError:
        return  # in use: the doctor says so
    if not damaged:
        return
    _require_unused(path)
    parts = (path.with_name(f"{path.name}{end}") for end in ("-wal", "-shm", ""))
    for each in filter(Path.exists, parts):
        yield f"{each} moved to {_aside(each)}; the next start makes another"


def _checkpoints(root: Path) -> Iterator[str]:
    _, damaged = checked_checkpoints(root)
    for each in damaged:
        if each.folder.exists():
            # Not `round-0004.damaged`: what is named `round-*` is a checkpoint to a run.
            moved = _free(each.folder.with_name(f"damaged-{each.folder.name}"))
            each.folder.rename(moved)
            yield f"{each.folder} moved to {moved}; `sdcore resume {each.run}` retrains it"


def _aside(path: Path) -> Path:
    return path.rename(_free(path.with_name(f"{path.name}.damaged")))


def _free(path: Path) -> Path:
    """The path, or the first of `path-2`, `path-3`, … that is not taken."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if not os.path.lexists(each))


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _require_unused(path: Path) -> None:
    for process in psutil.process_iter(["pid", "open_files"]):
        if any(Path(file.path) == path for file in process.info["open_files"] or []):
            raise _in_use(path)


def _in_use(path: Path) -> SdcoreError:
    return SdcoreError(
        "a damaged file is in use",
        where=str(path),
        fix="`sdcore down`, and end the runs of the workspace, then repair it again",
    )
