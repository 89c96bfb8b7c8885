"""Check that a DuckDB file is whole: every block of every table is read, and nothing is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from sdcore.errors import StoreBusyError, StoreError
from sdcore.store.database import NO_EXTENSIONS
from sdcore.store.schema import TABLES

PATIENCE = 5.0  # seconds; a run holds the file for milliseconds at a time
_COLUMNS = """
    SELECT table_name, column_name FROM duckdb_columns()
    WHERE schema_name = 'main' AND NOT internal ORDER BY table_name, column_index
"""


@dataclass(frozen=True)
class TableCheck:
    """A table of the schema: how many rows it has, and what is wrong with it, if anything is."""

    name: str
    rows: int = 0
    fault: str = ""


def check(path: Path, patience: float = PATIENCE) -> list[TableCheck]:
    """Read a file's tables whole; DuckDB compares every block with its checksum.

    Args:
        path: of the file. Its write-ahead log, if there is one, is read too.
        patience: seconds to wait for a process that has the file open for writing.

    Returns:
        What is known of every table of the schema, in the schema's order.

    Raises:
        StoreError: the file cannot be opened.
        StoreBusyError: another process held it for too long.
    """
    with _opened(path, patience) as connection:
        stored: dict[str, list[str]] = {}
        for table, column in connection.execute(_COLUMNS).fetchall():
            stored.setdefault(table, []).append(column)
        return [_checked(connection, name, stored.get(name)) for name in TABLES]


@contextmanager
def _opened(path: Path, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    attempts = Retrying(
        retry=retry_if_exception_type(StoreBusyError),
        stop=stop_after_delay(patience),
        wait=wait_fixed(0.1),
        reraise=True,
    )
    with attempts(_open, path) as connection:
        connection.execute("SET enable_progress_bar = false")
        yield connection


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(path, read_only=True, config=NO_EXTENSIONS)
    except duckdb.Error as error:
        if "lock on file" in str(error):
            raise StoreBusyError(
                "the tables are open in another process", got=error, where=str(path)
            ) from error
        raise StoreError("the tables cannot be opened", got=error, where=str(path)) from error


def _checked(
    connection: duckdb.DuckDBPyConnection, name: str, columns: list[str] | None
) -> TableCheck:
    expected = list(TABLES[name].dtypes)
    if columns is None:
        return TableCheck(name, fault="is missing")
    if columns != expected:
        differing = ", ".join(sorted(set(columns) ^ set(expected))) or "their order"
        return TableCheck(name, fault=f"has other columns than this version: {differing}")
    try:
        # The hash is of whole rows, so that every column's blocks are read.
        row = connection.execute(
            f"SELECT count(*), bit_xor(hash(whole)) FROM main.{name} AS whole"  # noqa: S608
        ).fetchone()
    except duckdb.Error as error:
        return TableCheck(name, fault=f"cannot be read: {str(error).splitlines()[0]}")
    return TableCheck(name, rows=int(row[0]) if row else 0)
