"""The workspace: permissions, services, tables, checkpoints, and the databases of both servers."""

import json
import os
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from flows.doctor.findings import Finding
from flows.servers import standing
from flows.servers.login import KEY, login
from flows.servers.named import named
from sdcore.errors import SdcoreError, StoreBusyError
from sdcore.store.check import PATIENCE, check
from sdcore.store.database import query_file

TABLES_FILE, CHECKPOINTS = "sdcore.duckdb", "checkpoints"
SERVERS = {"mlflow": Path("mlflow.db"), "prefect": Path("prefect", "prefect.db")}
PRIVATE = (TABLES_FILE, KEY, *map(str, SERVERS.values()))
FILES = (*PRIVATE, "sdcore.duckdb.lock", "sdcore.duckdb.wal", "mlflow.db.lock", "services.json")
FOLDERS = (CHECKPOINTS, "files", "logs", "mlflow-artifacts", "prefect", "reports")
_BUSY = "end the process that uses it, or wait for it, then run `sdcore doctor` again"
_RUN = ["experiment_id", "condition", "seed"]


@dataclass(frozen=True)
class Damage:
    """A checkpoint that cannot be used."""

    run: str
    folder: Path
    reason: str


def looks(root: Path) -> dict[str, Callable[[], Iterator[Finding]]]:
    """The looks at a workspace, by name; one that does not exist yet has nothing but a place."""
    if not os.path.lexists(root):
        return {"workspace": partial(place, root)}
    servers = {name: partial(server, root, name) for name in SERVERS}
    return {
        "workspace": partial(place, root),
        "login": partial(servers_key, root),
        "services": partial(services, root),
        "tables": partial(tables, root),
        "checkpoints": partial(checkpoints, root),
        "notes": partial(notes, root),
        **servers,
    }


def place(root: Path) -> Iterator[Finding]:
    """The folder: that it can be written, and that others cannot read what is private."""
    if not os.path.lexists(root):
        parent = next(each for each in root.parents if each.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding(
                "workspace", "ok", f"{root} is new", "`sdcore run` or `sdcore up` fills it"
            )
        else:
            found = f"{root} cannot be made: {parent} cannot be written"
            yield Finding("workspace", "fail", found, "name another folder with --workspace")
        return
    if not root.is_dir():
        found = f"{root} is not a folder"
        yield Finding("workspace", "fail", found, "name another folder with --workspace")
        return
    locked = [path for path in _own(root) if not os.access(path, _needed(path))]
    if locked:
        found = f"no permission to read and write: {_listed(locked, root)}"
        yield Finding(
            "workspace", "fail", found, f"chmod -R u+rwX {shlex.quote(str(root))}, as their owner"
        )
    else:
        yield Finding("workspace", "ok", f"{root} can be read and written")
    if "?" in str(root.resolve()):
        found = f"DuckDB cannot write to a path with a question mark: {root.resolve()}"
        yield Finding("workspace", "fail", found, "rename the folder")
    for path, expected in _misfits(root):
        found = f"{path} is not a {expected}"
        yield Finding("workspace", "fail", found, "move it away: another is made")
    shared = [path for path in _own(root) if path.name in _names() and _is_open(path)]
    if shared:
        found = f"other users may read: {_listed(shared, root)}"
        yield Finding("privacy", "warn", found, f"chmod go= {shlex.join(map(str, shared))}")


def servers_key(root: Path) -> Iterator[Finding]:
    """The key of the servers, if there is one: that it is whole, and that nobody else has it."""
    if (root / KEY).is_file():
        login(root)  # explains what is wrong
        yield Finding("login", "ok", f"{KEY} is whole, and for this user alone")


def services(root: Path) -> Iterator[Finding]:
    """The services that `sdcore up` started."""
    running = {name: len(standing.processes(root, name)) for name in standing.NAMES}
    missing = [name for name, count in running.items() if not count]
    if standing.was_started(root) and missing:
        found = f"started, but gone: {', '.join(missing)}"
        yield Finding("services", "warn", found, "`sdcore down`, then `sdcore up`")
    else:
        yield Finding("services", "ok", "down" if missing else "up")


def tables(root: Path, patience: float = PATIENCE) -> Iterator[Finding]:
    """The DuckDB file, every table of it; a process that has it open is waited for so long [s]."""
    path = root / TABLES_FILE
    if not path.exists():
        yield _no_tables(root, path)
        return
    try:
        checked = check(path, patience)
    except StoreBusyError as error:
        yield Finding("tables", "warn", f"not checked: {_first_line(error.got)}", _BUSY)
        return
    except SdcoreError as error:
        found = f"{path} cannot be opened: {_first_line(error.got)}"
        yield Finding("tables", "fail", found, _if_readable(path, _lost_tables()))
        return
    missing = [each.name for each in checked if each.fault == "is missing"]
    faults = [f"{each.name} {each.fault}" for each in checked if each.fault]
    if len(faults) > len(missing):
        yield Finding("tables", "fail", "; ".join(faults), _lost_tables())
    elif not any(each.rows for each in checked):
        yield _no_tables(root, path)
    elif missing:
        fix = (
            "none, if an earlier version of sdcore made the workspace: the next run makes them "
            f"empty. Otherwise: {_lost_tables()}"
        )
        yield Finding("tables", "warn", f"missing: {', '.join(missing)}", fix)
    else:
        counts = ", ".join(f"{each.name}: {each.rows}" for each in checked if each.rows)
        yield Finding("tables", "ok", counts)


def checkpoints(root: Path) -> Iterator[Finding]:
    """The checkpoints: those that runs need are there, and all have the weights of their rows."""
    count, damaged = checked_checkpoints(root)
    for each in damaged:
        fix = f"`sdcore resume {each.run}` retrains it"
        if each.folder.exists():
            fix = f"`sdcore doctor --repair` moves it aside; then {fix}"
        found = f"{each.folder.relative_to(root)}: {each.reason}"
        yield Finding("checkpoint", "fail", found, fix)
    if not damaged:
        yield Finding("checkpoints", "ok", f"{count} whole")


def checked_checkpoints(root: Path) -> tuple[int, list[Damage]]:
    """Return the number of whole checkpoints, and the damaged and missing ones.

    Every file of them is read.

    Raises:
        DataError: the tables cannot be read.
    """
    path, whole = root / TABLES_FILE, 0
    damaged: list[Damage] = []
    if not path.exists() or not any(each.rows for each in check(path) if each.name == "policies"):
        return whole, damaged
    from tasks.run.checkpoints import damage, needed  # noqa: PLC0415 - torch, where there are weights
    from tasks.run.condition_run import StoredPolicy  # noqa: PLC0415

    rows, stops = query_file(path, "FROM policies"), query_file(path, "FROM stops")
    for run, own in rows.sort(*_RUN, "round").group_by(_RUN, maintain_order=True):
        stored = StoredPolicy.from_frame(own)
        wanted = needed(stored, stops.filter(**dict(zip(_RUN, run, strict=True))))
        for policy in stored:
            folder = root / policy.checkpoint
            if folder.is_dir():
                error = damage(root, policy, resumable=wanted.get(policy, False))
                whole += error is None
                reason = _reason(error) if error else ""
            else:  # a run that was killed between two checkpoints has none of its last policy
                reason = "is missing" if policy in wanted and policy.path else ""
            if reason:
                damaged.append(Damage(policy.experiment_id, folder, reason))
    return whole, damaged


def notes(root: Path) -> Iterator[Finding]:
    """The notes from which experiment files the runs were started."""
    for path in sorted((root / "files").glob("*.json")):
        try:
            noted = json.loads(path.read_text("utf-8"))
            if not isinstance(noted["run"], str) or not isinstance(noted["file"], dict):
                raise TypeError("another form")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            found = f"{path.relative_to(root)} cannot be read: {_first_line(error)}"
            fix = f"rm -r {shlex.quote(str(path))}: the next run of that file writes it again"
            yield Finding("notes", "fail", found, fix)


def server(root: Path, name: str) -> Iterator[Finding]:
    """The tables of a server: those that the environment names, else the workspace's file."""
    lines = named(root)
    given = [line for variable, line in lines.items() if variable.startswith(name.upper())]
    if given:
        fix = "unset the variable, if that is not what you want"
        yield Finding(name, "ok", f"not in the workspace. {'; '.join(given)}", fix)
    else:
        yield from database(root, name)


def database(root: Path, name: str) -> Iterator[Finding]:
    """The SQLite file of a server, every page of it."""
    path = root / SERVERS[name]
    if not path.is_file():
        yield Finding(name, "ok", "no database yet")
        return
    try:
        fault = sqlite_fault(path)
    except sqlite3.OperationalError as error:
        found = f"{path} is not checked: {error}"
        yield Finding(name, "warn", found, _if_readable(path, _BUSY))
        return
    if fault:
        found = f"{path} is damaged: {_first_line(fault)}"
        fix = (
            f"`sdcore doctor --repair` moves it aside, and the next run makes another{_LOST[name]}"
        )
        yield Finding(name, "fail", found, fix)
    else:
        yield Finding(name, "ok", f"{path.name} is whole, {path.stat().st_size / 2**20:.1f} MiB")


_LOST = {
    "mlflow": "; its numbers are in the tables, and a run that is given again logs them again",
    "prefect": "; it holds the history in Prefect's pages, and schedules that were changed there",
}


def sqlite_fault(path: Path) -> str:
    """Return what SQLite finds wrong with a file, or nothing.

    Raises:
        sqlite3.OperationalError: it is locked, or cannot be read by this user.
    """
    # Reading a database in WAL mode would leave two files beside it, unless it is declared
    # immutable, which it is if nobody has it open: then it has no log.
    mode = "ro" if path.with_name(f"{path.name}-wal").exists() else "ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True)) as opened:
            answers = [str(text) for (text,) in opened.execute("PRAGMA quick_check")]
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if answers == ["ok"] else "; ".join(answers)


def _no_tables(root: Path, path: Path) -> Finding:
    log, there = path.with_name(f"{path.name}.wal"), path.exists()
    lost = not there and log.exists()
    if lost or any((root / CHECKPOINTS).glob("*/*/seed-*/round-*")):
        found = f"{path} {'has no rows' if there else 'is gone'}, but "
        found += f"{log.name if lost else CHECKPOINTS} is there"
        return Finding("tables", "fail", found, _lost_tables())
    return Finding("tables", "ok", "none yet", "the first run makes them")


def _lost_tables() -> str:
    return (
        "restore the file from a copy, or rebuild it from what `sdcore export` wrote: "
        "`sdcore doctor --repair --export FOLDER`; without either, name another --workspace"
    )


def _own(root: Path) -> list[Path]:
    """The folder, its files, and the folders of the servers and checkpoints."""
    paths = [root, *root.iterdir()] if os.access(root, os.R_OK | os.X_OK) else [root]
    inner = root / SERVERS["prefect"]
    return [*paths, inner] if os.access(inner, os.F_OK) else paths


def _needed(path: Path) -> int:
    return os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)


def _names() -> set[str]:
    return {Path(name).name for name in PRIVATE}


def _is_open(path: Path) -> bool:
    return path.is_file() and bool(path.stat().st_mode & 0o077)


def _misfits(root: Path) -> Iterator[tuple[Path, str]]:
    """Parts of a workspace that are of another kind, such as a link to nothing; the right one."""
    there = [path for path in (root / name for name in (*FILES, *FOLDERS)) if os.path.lexists(path)]
    for path in there:
        is_folder = str(path.relative_to(root)) in FOLDERS
        if not (path.is_dir() if is_folder else path.is_file()):
            yield path, "folder" if is_folder else "file"


def _if_readable(path: Path, fix: str) -> str:
    """Return the fix of a file that can be read; else where the fix of its permissions is."""
    return fix if os.access(path, os.R_OK) else "make it readable first: see workspace"


def _listed(paths: list[Path], root: Path) -> str:
    return ", ".join(str(path.relative_to(root)) if path != root else str(root) for path in paths)


def _reason(error: SdcoreError) -> str:
    return f"{error.what} ({_first_line(error.got)})" if error.got else error.what


def _first_line(text: object) -> str:
    return next(iter(str(text).splitlines()), "")
