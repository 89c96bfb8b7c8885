"""The workspace's DuckDB file: the only module that knows DuckDB.

While a process has the file open for writing no other process can open it at all, so it is attached
for one short transaction at a time, under a lock file that all sdcore processes share. Attaching to
a standing in-memory instance costs about a millisecond; opening a database costs fifteen.

A commit is on disk when the write-ahead log beside the file (`.wal`) is, which takes one fsync.
Folding the log into the file takes four more and is put off until it has grown or the process ends:
whoever attaches the file, sdcore or any DuckDB, reads both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Self

import duckdb
import polars as pl
from filelock import FileLock, Timeout
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from sdcore.errors import DataError, StoreBusyError, StoreError
from sdcore.store.schema import TABLES, Table
from sdcore.store.sql_views import VIEWS

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "checkpoint_on_detach": "DISABLED",
    "wal_autocheckpoint": "128KB",  # replaying as much costs every attach about a millisecond
}

SUPERSEDED = "superseded"  # schema of the rows that a redone stage has replaced


class Store:
    """Reads and appends to the tables of one DuckDB file, which is created when first needed.

    Several processes may use it at once. Close it, or use it in a `with` block: that folds the
    write-ahead log into the file, which is then complete by itself.

    Args:
        path: of the file.
        timeout: seconds to wait for another writer before `StoreBusyError` is raised.
        threads: of a query, by default one per core. A single one is faster where many small frames
            are read and written, as by a run: attaching takes half the time.
        timed: entered around every access to the file, by whoever measures them.
    """

    def __init__(
        self,
        path: Path,
        *,
        timeout: float = 60.0,
        threads: int | None = None,
        timed: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.path, self._timeout, self._timed = path, timeout, timed
        self._lock = FileLock(f"{path}.lock", timeout=timeout, poll_interval=0.005)
        own = {} if threads is None else {"threads": threads}
        self._duckdb = duckdb.connect(":memory:", config=_SETTINGS | own)
        self._created = self._written = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the write-ahead log into the file, if anything was written, and let go of it."""
        if self._written:
            # Where another program has the file, the log stays: no less durable, only read slower.
            with suppress(StoreBusyError), self._attached(read_only=False) as connection:
                connection.execute("CHECKPOINT")
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
            return {
                name: _append(connection, TABLES[name], frame) for name, frame in checked.items()
            }

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
            return {
                name: _replace(connection, TABLES[name], frame) for name, frame in checked.items()
            }

    def supersede(self, sql: Mapping[str, str], parameters: dict[str, object]) -> dict[str, int]:
        """Move rows out of the way of new ones, all in one transaction: they are kept.

        They go to the tables of the same names in the schema `superseded`, with the time.

        Args:
            sql: condition on the rows of each table (SQL that the caller wrote, no one's input).
            parameters: values of its `$names`; each condition must use them all.

        Returns:
            Rows moved per table.

        Raises:
            StoreBusyError: another process held the file for too long.
        """
        with self._transaction() as connection:
            return {name: _supersede(connection, name, sql[name], parameters) for name in sql}

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
                unknown = isinstance(error, duckdb.CatalogException)
                raise StoreError(
                    "query failed",
                    got=error,
                    where=str(self.path),
                    fix=f"tables: {', '.join((*TABLES, *VIEWS))}" if unknown else "",
                ) from error

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
        with self._attached(read_only=False) as connection:
            with _committed(connection):
                yield connection
            self._written = True

    @contextmanager
    def _attached(self, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._timed(), self._lock:
                if not self._created:
                    self._create()
                self._attach(read_only=read_only)
                try:
                    yield self._duckdb
                finally:
                    self._detach()
        except Timeout as error:
            raise self._busy() from error

    def _attach(self, *, read_only: bool) -> None:
        # Another program (a DuckDB shell, a notebook) does not know our lock file: wait for it too.
        attempts = Retrying(
            retry=retry_if_exception_type(duckdb.IOException),
            stop=stop_after_delay(self._timeout),
            wait=wait_random_exponential(multiplier=0.02, max=1.0),
            retry_error_callback=self._give_up,
        )
        mode = " (READ_ONLY)" if read_only else ""
        path = str(self.path).replace("'", "''")
        attempts(self._duckdb.execute, f"ATTACH '{path}' AS workspace{mode}")
        self._duckdb.execute("USE workspace")

    def _detach(self) -> None:
        self._duckdb.execute("USE memory")
        self._duckdb.execute("DETACH workspace")

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._attach(read_only=False)
        try:
            with _committed(self._duckdb):
                for table in TABLES.values():
                    self._create_table(table)
                _create_views(self._duckdb)
        finally:
            self._detach()
        self._created = True

    def _create_table(self, table: Table) -> None:
        self._duckdb.execute(table.ddl)
        stored = [row[0] for row in self._duckdb.execute(f"DESCRIBE {table.name}").fetchall()]
        if stored != list(table.dtypes):
            raise StoreError(
                "table was made by another version of sdcore",
                got=stored,
                expected=list(table.dtypes),
                where=f"{self.path}: {table.name}",
                fix="use a new --workspace",
            )

    def _give_up(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        raise self._busy() from state.outcome.exception()

    def _busy(self) -> StoreBusyError:
        return StoreBusyError(
            "the database is open for writing elsewhere",
            expected=f"to be free within {self._timeout:g} s",
            where=str(self.path),
            fix="close the other program, then try again",
        )


def _matches(column: str, value: object) -> str:
    if isinstance(value, list):
        return f"{column} IN (SELECT unnest(${column}))"
    return f"{column} IS NOT DISTINCT FROM ${column}"


def query_file(path: Path, sql: str) -> pl.DataFrame:
    """Rows of a query on a DuckDB file of any origin, opened for reading, with no way out of it.

    Raises:
        DataError: there is no such file, or the query fails.
    """
    try:
        closed: dict[str, str | bool | int | float | list[str]] = {"enable_external_access": False}
        with duckdb.connect(path, read_only=True, config=closed) as connection:
            return pl.DataFrame(connection.sql(sql).pl())
    except duckdb.Error as error:
        raise DataError("query on a DuckDB file fails", got=error, where=str(path)) from error


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


def _create_views(connection: duckdb.DuckDBPyConnection) -> None:
    stored = "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal"
    comments = dict(connection.execute(stored).fetchall())
    for view in VIEWS.values():
        if comments.get(view.name) != view.comment:
            connection.execute(f"CREATE OR REPLACE VIEW {view.name} AS {view.sql}")
            comment = view.comment.replace("'", "''")
            connection.execute(f"COMMENT ON VIEW {view.name} IS '{comment}'")
