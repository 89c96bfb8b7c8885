"""The workspace's DuckDB file: the only module that knows DuckDB.

While a process has the file open for writing no other process can open it at all, so it is attached
for one short transaction at a time, under a lock file that all sdcore processes share. Attaching to
a standing in-memory instance costs about a millisecond; opening a database costs fifteen.

A commit is on disk when the write-ahead log beside the file (`.wal`) is, which takes one fsync.
Folding the log into the file takes four more and is put off until it has grown or the process ends:
whoever attaches the file, sdcore or any DuckDB, reads both.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, Self, TypeAlias

import duckdb
import polars as pl
from filelock import FileLock, Timeout
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)

from sdcore.errors import DataError, StoreBusyError, StoreError
from sdcore.store.schema import TABLES, Table
from sdcore.store.sql_views import VIEWS
from sdcore.system.holders import described, lock_holder
from sdcore.system.private import private_files

Settings: TypeAlias = dict[str, str | bool | int | float | list[str]]
# For a file of another program, such as SQLite's, DuckDB would download an extension that reads it.
NO_EXTENSIONS: Settings = {
    "autoinstall_known_extensions": False, "autoload_known_extensions": False,
}  # fmt: skip
_SETTINGS: Settings = {
    "checkpoint_on_detach": "DISABLED",
    "wal_autocheckpoint": "128KB",  # replaying as much costs every attach about a millisecond
}

SUPERSEDED = "superseded"  # schema of the rows that a redone stage has replaced
NOTICE = 1.0  # seconds of waiting after which it is worth saying for whom
CLOSING = 1.0  # seconds that closing waits to fold the log into the file
# 'Conflicting lock is held in /usr/bin/python3.11 (PID 4711) by user jo'
_HELD = re.compile(
    r"lock on file .*Conflicting lock is held(?: in (.*?) \(PID (\d+)\))?", re.DOTALL
)


class Store:
    """Reads and appends to the tables of one DuckDB file, which is created when first needed.

    Several processes may use it at once. Close it, or use it in a `with` block: that folds the
    write-ahead log into the file, which is then complete by itself.

    Args:
        path: of the file.
        timeout: seconds to wait for another process before `StoreBusyError` is raised; None to wait
            for as long as it takes.
        threads: of a query, by default one per core. A single one is faster where many small frames
            are read and written, as by a run: attaching takes half the time.
        timed: entered around every access to the file, by whoever measures them.
        say: called with a line for the user when another process has had the file for more than a
            second, and when it is free again.
        stored: called after each commit of `append_missing` (false) and `replace` (true) with its
            rows, by whoever sends them on.
    """

    def __init__(
        self,
        path: Path,
        *,
        timeout: float | None = 60.0,
        threads: int | None = None,
        timed: Callable[[], AbstractContextManager[object]] = nullcontext,
        say: Callable[[str], None] = lambda line: None,
        stored: Callable[[Mapping[str, pl.DataFrame], bool], object] = lambda rows, replaced: None,
    ) -> None:
        self.path, self._timeout, self._timed, self._say = path, timeout, timed, say
        self._stored = stored
        self._lock = FileLock(f"{path}.lock", mode=0o600, poll_interval=0.005)
        own: Settings = {} if threads is None else {"threads": threads}
        self._duckdb = duckdb.connect(":memory:", config=_SETTINGS | NO_EXTENSIONS | own)
        self._complete = self._written = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the write-ahead log into the file, if anything was written, and let go of it."""
        if self._written:
            # Where another program has the file, the log stays: no less durable, only read slower.
            self._timeout = CLOSING
            with suppress(StoreError), self._explained(), self._attached(read_only=False) as opened:
                opened.execute("CHECKPOINT")
        self._duckdb.close()
        del self._duckdb  # DuckDB's binding complains at exit of a connection that lives on

    def append_missing(self, **frames: pl.DataFrame) -> dict[str, int]:
        """Append to each named table the rows whose key is not there yet, all in one transaction.

        Returns:
            Rows written per table.

        Raises:
            DataError: columns or types differ from the schema, a required value is null, or a key
                occurs twice in the frame. Nothing is written then.
            StoreBusyError: another process held the file for too long.
        """
        checked = {name: TABLES[name].checked(frame) for name, frame in frames.items()}
        with self._transaction() as connection:
            count = {
                name: _append(connection, TABLES[name], frame) for name, frame in checked.items()
            }
        self._stored(checked, False)
        return count

    def replace(self, **frames: pl.DataFrame) -> dict[str, int]:
        """Put rows in the place of those with the same keys, all in one transaction.

        What was there moves to the schema `superseded`, as `supersede` does it.

        Returns:
            Rows moved per table.

        Raises:
            DataError, StoreBusyError: as `append_missing`.
        """
        checked = {name: TABLES[name].checked(frame) for name, frame in frames.items()}
        with self._transaction() as connection:
            count = {
                name: _replace(connection, TABLES[name], frame) for name, frame in checked.items()
            }
        self._stored(checked, True)
        return count

    def supersede(
        self, sql: Mapping[str, str], parameters: dict[str, object], **frames: pl.DataFrame
    ) -> dict[str, int]:
        """Move rows out of the way of new ones, all in one transaction: they are kept.

        They go to the tables of the same names in the schema `superseded`, with the time.

        Args:
            sql: condition on the rows of each table (SQL that the caller wrote, no one's input).
            parameters: values of its `$names`; each condition must use them all.
            frames: new rows of each table, if they are there already.

        Returns:
            Rows moved per table.

        Raises:
            DataError, StoreBusyError: as `append_missing`.
        """
        checked = {name: TABLES[name].checked(frame) for name, frame in frames.items()}
        with self._transaction() as connection:
            count = {name: _supersede(connection, name, sql[name], parameters) for name in sql}
            for name, frame in checked.items():
                _append(connection, TABLES[name], frame)
        if checked:
            self._stored(checked, True)
        return count

    def copied(self, folder: Path) -> Path:
        """Return a copy of the file, and of the log beside it, in a folder of the caller's.

        It takes the time of a copy, during which nobody can write; the copy holds nobody up.

        Raises:
            StoreError: there is no room for it.
            StoreBusyError: another process held the file for too long.
        """
        with self._attached(read_only=True), ExitStack() as files:
            # Both open until the end: closing the file gives up the lock that DuckDB has on it.
            for path in (self.path, self._log):
                with suppress(FileNotFoundError):
                    source = files.enter_context(path.open("rb"))
                    target = files.enter_context((folder / path.name).open("wb"))
                    _copy(source, target)
        return folder / self.path.name

    def query(
        self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()
    ) -> pl.DataFrame:
        """Run one read-only SQL statement over the tables; values go in as `parameters`.

        Raises:
            StoreError: the statement is wrong or tries to write.
            StoreBusyError: another process held the file for too long.
        """
        with self._attached(read_only=True) as connection:
            try:
                relation = connection.sql(sql, params=parameters)
                return pl.DataFrame(None if relation is None else relation.pl())
            except duckdb.Error as error:
                raise query_error(error, self.path) from error

    def rows(self, table: str, **equals: object) -> pl.DataFrame:
        """Rows of a table whose columns equal the given values, or one of the values of a list.

        None matches null.
        """
        unknown = equals.keys() - TABLES[table].dtypes.keys()
        if unknown:
            raise StoreError(
                "no such column", got=unknown, expected=list(TABLES[table].dtypes), where=table
            )
        conditions = [_matches(column, value) for column, value in equals.items()]
        where = " AND ".join(conditions) or "true"
        return self.query(f"SELECT * FROM {table} WHERE {where}", equals)

    def with_superseded(self, table: str) -> str:
        """SQL of all rows that a table has ever had, superseded ones included."""
        found = self.query(
            "SELECT 1 FROM duckdb_tables() WHERE schema_name = ? AND table_name = ?",
            [SUPERSEDED, table],
        )
        kept = f"SELECT * EXCLUDE (superseded_at) FROM {SUPERSEDED}.{table}"
        return f"(FROM {table} UNION ALL BY NAME {kept})" if len(found) else table

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        # DuckDB may notice a full disk as late as when it lets go of the file.
        with self._explained(), self._attached(read_only=False) as connection:
            with _committed(connection):
                yield connection
            self._written = True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            raise StoreError(
                "the tables cannot be written",
                got=error,
                where=str(self.path),
                fix="remove the cause, then try again: what was committed before is whole",
            ) from error

    @contextmanager
    def _attached(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._timed(), self._locked(read_only=read_only):
            if not self._complete:
                self._make_complete()
            with self._open(read_only=read_only):
                yield self._duckdb

    @contextmanager
    def _locked(self, *, read_only: bool) -> Iterator[None]:
        """Hold the lock file; who reads where nothing can be written does without."""
        try:
            if not self.path.parent.exists():
                with private_files():
                    self.path.parent.mkdir(parents=True)
            self._patiently(self._lock_once)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            if not (read_only and self.path.exists()):
                raise StoreError(
                    "the workspace cannot be written",
                    got=error,
                    where=str(self.path.parent),
                    fix="name another folder with --workspace, or make this one writable",
                ) from error
        try:
            yield
        finally:
            self._lock.release()

    def _lock_once(self) -> None:
        try:
            timeout = NOTICE if self._timeout is None else min(NOTICE, self._timeout)
            self._lock.acquire(timeout=timeout)
        except Timeout as error:
            raise _HeldError(described(lock_holder(Path(self._lock.lock_file)))) from error

    @contextmanager
    def _open(self, *, read_only: bool) -> Iterator[None]:
        if not read_only and "?" in str(self.path.resolve()):
            # It would write the log of a?b/x.duckdb to a.wal?b/x.duckdb, and follows links.
            raise StoreError(
                "DuckDB cannot write to a path with a question mark",
                got=str(self.path.resolve()),
                fix="rename the folder, or name another one with --workspace",
            )
        mode = " (READ_ONLY)" if read_only else ""
        path = str(self.path).replace("'", "''")
        # The log is created when something is first written, so the block is private too.
        with nullcontext() if read_only else private_files():
            # A DuckDB shell or a notebook does not know our lock file: wait for it too.
            self._patiently(lambda: self._attach_once(f"ATTACH '{path}' AS workspace{mode}"))
            self._duckdb.execute("USE workspace")
            try:
                yield
            finally:
                self._duckdb.execute("USE memory")
                self._duckdb.execute("DETACH workspace")

    def _attach_once(self, sql: str) -> None:
        new = not self.path.exists()
        try:
            self._duckdb.execute(sql)
        except duckdb.Error as error:
            if held := _HELD.search(str(error)):
                name, pid = held.groups(default="")
                raise _HeldError(described(int(pid or 0), Path(name).name)) from error
            if new:  # a part of a file, for which the disk had no room, could never be opened
                self.path.unlink(missing_ok=True)
            raise self._unusable(error) from error

    def _patiently(self, attempt: Callable[[], None]) -> None:
        """Repeat an attempt while another process holds the file, and say whom it waits for."""
        named: list[str] = []  # processes that have been named, the last one last

        def name(state: RetryCallState) -> None:
            holder = str(state.outcome.exception() if state.outcome else "")
            if (state.seconds_since_start or 0.0) >= NOTICE and named[-1:] != [holder]:
                named.append(holder)
                self._say(f"waiting: {holder} has the tables open ({self.path})")

        attempts = Retrying(
            retry=retry_if_exception_type(_HeldError),
            stop=stop_never if self._timeout is None else stop_after_delay(self._timeout),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            before_sleep=name,
            retry_error_callback=self._give_up,
        )
        attempts(attempt)
        if named:
            self._say("the tables are free again, going on")

    def _make_complete(self) -> None:
        """See that the file has every table and view; write only where one is missing."""
        if self.path.exists():
            if not self.path.is_file():  # DuckDB would wait at a pipe for ever
                raise StoreError(
                    "the tables are not a file",
                    got="a folder, a pipe or a device",
                    where=str(self.path),
                    fix="move it away, or name another folder with --workspace",
                )
            with self._open(read_only=True):
                self._complete = self._has_all()
        if not self._complete and self._may_write():
            with self._explained(), self._open(read_only=False), _committed(self._duckdb):
                for table in TABLES.values():
                    self._duckdb.execute(table.ddl)
                _create_views(self._duckdb)
        self._complete = True

    def _has_all(self) -> bool:
        """Return whether no table or view is missing or older than this version's.

        Raises:
            StoreError: a table has other columns than this version's.
        """
        stored: dict[str, list[str]] = {}
        for table, column in self._duckdb.execute(_COLUMNS).fetchall():
            stored.setdefault(table, []).append(column)
        for name, table in TABLES.items():
            if stored.get(name, list(table.dtypes)) != list(table.dtypes):
                raise StoreError(
                    "table was made by another version of sdcore",
                    got=stored[name],
                    expected=list(table.dtypes),
                    where=f"{self.path}: {name}",
                    fix="use a new --workspace",
                )
        comments = _view_comments(self._duckdb)
        current = all(comments.get(view.name) == view.comment for view in VIEWS.values())
        return current and stored.keys() >= TABLES.keys()

    def _may_write(self) -> bool:
        writable = os.access(self.path.parent, os.W_OK)
        return writable and (not self.path.exists() or os.access(self.path, os.W_OK))

    @property
    def _log(self) -> Path:
        return self.path.with_name(f"{self.path.name}.wal")

    def _unusable(self, error: duckdb.Error) -> StoreError:
        invalid = "not a valid DuckDB database file" in str(error)
        remedy = "restore the file from a copy"
        if not self.path.exists():
            remedy = "remove the cause and try again"
        elif not os.access(self.path, os.R_OK):
            remedy = "let its owner give you access"
        return StoreError(
            "the tables cannot be opened",
            got="an empty file" if invalid and not self.path.stat().st_size else error,
            expected="a DuckDB file" if invalid else None,
            where=str(self.path),
            fix=f"{remedy}, or name another folder with --workspace",
        )

    def _give_up(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        holder = state.outcome.exception()
        raise StoreBusyError(
            "the tables are open in another process",
            got=holder,
            expected=f"to be free within {self._timeout:g} s",
            where=str(self.path),
            fix="close them there, then try again",
        ) from holder


class _HeldError(Exception):
    """Another process holds the file; the text names it."""


_COLUMNS = """
    SELECT table_name, column_name FROM duckdb_columns()
    WHERE database_name = 'workspace' AND schema_name = 'main' ORDER BY table_name, column_index
"""


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    try:
        shutil.copyfileobj(source, target, 1 << 24)
    except OSError as error:
        raise StoreError(
            "the tables cannot be copied to be read",
            got=error,
            where=target.name,
            fix="free disk space there, or set TMPDIR to a folder that has some",
        ) from error


def _matches(column: str, value: object) -> str:
    if isinstance(value, list):
        return f"{column} IN (SELECT unnest(${column}))"
    return f"{column} IS NOT DISTINCT FROM ${column}"


def query_error(error: duckdb.Error, path: Path) -> StoreError:
    """Return the error of a statement that fails; where it names no table, with their names."""
    unknown = isinstance(error, duckdb.CatalogException)
    return StoreError(
        "query failed",
        got=error,
        where=str(path),
        fix=f"tables: {', '.join((*TABLES, *VIEWS))}" if unknown else "",
    )


_FAILS = "query on a DuckDB file fails"


def query_file(path: Path, sql: str, *, limit: int | None = None) -> pl.DataFrame:
    """First rows of a query on a DuckDB file of any origin, opened for reading, with no way out.

    Raises:
        DataError: there is no such file, or the query fails.
    """
    try:
        closed: Settings = {"enable_external_access": False}
        with duckdb.connect(path, read_only=True, config=closed) as connection:
            rows = connection.sql(sql)
            if rows is None:
                raise DataError(_FAILS, got=repr(sql), expected="a SELECT", where=str(path))
            return pl.DataFrame((rows if limit is None else rows.limit(limit)).pl())
    except duckdb.Error as error:
        raise DataError(_FAILS, got=error, where=str(path)) from error


@contextmanager
def _committed(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:  # Ctrl-C too: the file must not be left in a transaction
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def _incoming(connection: duckdb.DuckDBPyConnection, frame: pl.DataFrame) -> Iterator[None]:
    """The frame as the table `incoming`; the newest Arrow level is the one without copies."""
    connection.register("incoming", frame.to_arrow(compat_level=pl.CompatLevel.newest()))
    try:
        yield
    finally:
        connection.unregister("incoming")


def _append(connection: duckdb.DuckDBPyConnection, table: Table, frame: pl.DataFrame) -> int:
    key = ", ".join(table.key)
    # The semi join inside halves the cost: its filter reaches into the scan, an anti join's cannot.
    there = f"SELECT {key} FROM {table.name} SEMI JOIN incoming USING ({key})"
    with _incoming(connection, frame):
        count = connection.execute(
            f"INSERT INTO {table.name} SELECT incoming.* FROM incoming "
            f"ANTI JOIN ({there}) USING ({key})"
        ).fetchone()
    return int(count[0]) if count else 0


def _replace(connection: duckdb.DuckDBPyConnection, table: Table, frame: pl.DataFrame) -> int:
    key = ", ".join(table.key)
    with _incoming(connection, frame):
        moved = _supersede(connection, table.name, f"({key}) IN (SELECT ({key}) FROM incoming)", {})
    _append(connection, table, frame)
    return moved


def _supersede(
    connection: duckdb.DuckDBPyConnection, name: str, where: str, parameters: dict[str, object]
) -> int:
    kept = f"{SUPERSEDED}.{name}"
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SUPERSEDED}")
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {kept} AS "
        f"SELECT *, now()::TIMESTAMP AS superseded_at FROM {name} LIMIT 0"
    )
    connection.execute(
        f"INSERT INTO {kept} SELECT *, now()::TIMESTAMP FROM {name} WHERE {where}", parameters
    )
    count = connection.execute(f"DELETE FROM {name} WHERE {where}", parameters).fetchone()
    return int(count[0]) if count else 0


def _view_comments(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    stored = (
        "SELECT view_name, comment FROM duckdb_views() "
        "WHERE NOT internal AND database_name = 'workspace'"
    )
    return dict(connection.execute(stored).fetchall())


def _create_views(connection: duckdb.DuckDBPyConnection) -> None:
    comments = _view_comments(connection)
    for view in VIEWS.values():
        if comments.get(view.name) != view.comment:
            connection.execute(f"CREATE OR REPLACE VIEW {view.name} AS {view.sql}")
            comment = view.comment.replace("'", "''")
            connection.execute(f"COMMENT ON VIEW {view.name} IS '{comment}'")
