"""One statement that reads, on a private copy of the tables.

A user may take hours over a result: the copy holds up no run. The statement
can do nothing but read it: it is one SELECT, the copy is opened for reading, DuckDB's configuration
is locked, and no file, address or extension can be reached unless the caller allows it.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, TypeVar

import duckdb
import polars as pl

from sdcore.errors import StoreError
from sdcore.store.database import NO_EXTENSIONS, Settings, Store, query_error

Parameters: TypeAlias = Sequence[object] | Mapping[str, object]
FileFormat = Literal["csv", "json", "parquet"]
Computed = TypeVar("Computed")

_READS = "one SELECT (or FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE)"
_OPTIONS: dict[FileFormat, str] = {
    "csv": "FORMAT csv, HEADER",
    "json": "FORMAT json, ARRAY true",
    "parquet": "FORMAT parquet",
}
_NESTED = {"list", "array", "struct", "map", "union", "variant"}


@dataclass(frozen=True)
class Shown:
    """The start of a result as text, and whether that is all of it."""

    text: str
    complete: bool


def show(store: Store, sql: str, *, rows: int, width: int, allow_files: bool = False) -> Shown:
    """Return the first rows of a result in a box, as DuckDB's own shell prints them.

    Only these rows are computed, as far as the statement allows. Columns that do not fit `width`
    characters give way to dots; the last line then says how many there are.

    Raises:
        StoreError: the statement fails, or does anything but read.
        StoreBusyError: another process held the tables for too long.
    """
    with _result(store, sql, (), allow_files=allow_files) as (connection, result):
        first = _interruptible(connection, result.limit(rows + 1).materialize)
        count, text = len(first), StringIO()
        with redirect_stdout(text):
            first.limit(rows).show(max_width=width, max_rows=rows)
    box = text.getvalue().rstrip()
    return Shown(box, complete=count <= rows and " shown)" not in box.rpartition("\n")[2])


def read(store: Store, sql: str, parameters: Parameters = ()) -> pl.DataFrame:
    """Return a whole result.

    Raises:
        StoreError, StoreBusyError: as `show`; or a column has no Polars type.
    """
    with _result(store, sql, parameters) as (connection, result):
        _require_distinct(result.columns)
        try:
            return pl.DataFrame(_interruptible(connection, result.pl))
        except pl.exceptions.PolarsError as error:
            types = zip(result.columns, map(str, result.types))
            raise StoreError(
                "a column has no Polars type",
                got=", ".join(f"{name} {kind}" for name, kind in types),
                where=sql,
                fix="cast it in the statement, such as column::VARCHAR",
            ) from error


def write(
    store: Store, sql: str, target: Path, form: FileFormat, *, allow_files: bool = False
) -> int:
    """Write a whole result into a file, which is replaced at the end; memory is bounded.

    A link is followed, and a pipe is written to. In CSV, lists and structs are JSON texts.

    Returns:
        Number of rows.

    Raises:
        StoreError, StoreBusyError: as `show`; or the file cannot be written.
    """
    try:
        str(target).encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            "DuckDB cannot write to a path that is not UTF-8",
            got=ascii(str(target)),
            fix="name another file",
        ) from error
    target = Path(os.path.realpath(target))
    part = target.with_name(f".{target.name}.part")
    with _result(store, sql, (), output=part, allow_files=allow_files) as (connection, result):
        _require_distinct(result.columns)
        into = str(part).replace("'", "''")
        copy = (
            f"COPY (SELECT {_columns(result, form)} FROM result) "
            f"TO '{into}' ({_OPTIONS[form]}, USE_TMP_FILE false)"
        )
        copied = _interruptible(connection, lambda: result.query("result", copy))
        assert copied is not None, "COPY counts its rows"
        ((rows,),) = copied.fetchall()
        _put(part, target)
    return int(rows)


@contextmanager
def _result(
    store: Store,
    sql: str,
    parameters: Parameters,
    *,
    output: Path | None = None,
    allow_files: bool = False,
) -> Iterator[tuple[duckdb.DuckDBPyConnection, duckdb.DuckDBPyRelation]]:
    """The result of a statement, not computed yet, on a copy that lasts as long as the block."""
    with TemporaryDirectory(prefix="sdcore-") as folder:
        copy = store.copied(Path(folder))
        with duckdb.connect(copy, read_only=True, config=_config()) as connection:
            try:
                _close(connection, output, allow_files=allow_files)
                yield connection, connection.sql(_statement(connection, sql), params=parameters)
            except duckdb.Error as error:
                raise query_error(error, store.path) from error
            finally:
                if output is not None:
                    with suppress(OSError):
                        output.unlink()


def _interruptible(
    connection: duckdb.DuckDBPyConnection, compute: Callable[[], Computed]
) -> Computed:
    """Compute in a thread, so that Ctrl-C arrives here: DuckDB may not notice it for hours.

    The wait is cut into parts, since with Polars' handler of the signal nothing else ends it.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(compute)
        try:
            while wait([future], timeout=0.1).not_done:
                pass
            return future.result()
        except KeyboardInterrupt:
            while wait([future], timeout=0.1).not_done:  # an interrupt may come too early
                connection.interrupt()
            raise


def _config() -> Settings:
    # Else a table name in the statement could be a variable of this process.
    return NO_EXTENSIONS | {"python_enable_replacements": False}


def _close(
    connection: duckdb.DuckDBPyConnection, output: Path | None, *, allow_files: bool
) -> None:
    """Shut everything outside the database off, but for the file that the caller writes."""
    if output is not None:
        path = str(output).replace("'", "''")
        connection.execute(f"SET allowed_paths = ['{path}']")
    if not allow_files:
        connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _statement(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Return the one statement of a text, without the semicolon and what follows it."""
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise StoreError("the statement is not UTF-8", got=ascii(sql)) from error
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise StoreError("not one statement", got=f"{len(statements)} of them", expected=_READS)
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        # A PIVOT without a list of values is several statements in DuckDB, the first of them a
        # CREATE TYPE.
        fix = "write a PIVOT as FROM (PIVOT table ON column IN (values) USING ...)"
        raise StoreError(
            "the statement does more than read",
            got=kind.name,
            expected=_READS,
            fix=fix if kind == duckdb.StatementType.MULTI else "",
        )
    end = next((at for at, _ in duckdb.tokenize(sql) if sql.encode()[at : at + 1] == b";"), None)
    return sql if end is None else sql.encode()[:end].decode()


def _put(part: Path, target: Path) -> None:
    try:
        if target.is_fifo() or target.is_char_device():
            with part.open("rb") as result, target.open("wb") as pipe:
                shutil.copyfileobj(result, pipe)
        else:
            part.replace(target)
    except OSError as error:
        raise StoreError("the result cannot be written", got=error, where=str(target)) from error


def _require_distinct(columns: Sequence[str]) -> None:
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise StoreError(
            "two columns have one name", got=", ".join(repeated), fix="rename one with AS"
        )


def _columns(result: duckdb.DuckDBPyRelation, form: FileFormat) -> str:
    return ", ".join(map(_column, result.columns, result.types, [form] * len(result.columns)))


def _column(name: str, kind: duckdb.sqltypes.DuckDBPyType, form: FileFormat) -> str:
    quoted = _quoted(name)
    if form == "parquet" or (form == "csv" and kind.id not in _NESTED):
        return quoted
    finite = _finite(quoted, kind)
    return f"{finite if form == 'json' else f'to_json({finite})'} AS {quoted}"


def _finite(value: str, kind: Any) -> str:
    """SQL of a value in which null stands for NaN and infinity, which JSON does not have."""
    if kind.id in {"float", "double"}:
        return f"CASE WHEN isfinite({value}) THEN {value} END"
    if kind.id in {"list", "array"}:
        each = _finite("x", kind.children[0][1])
        return value if each == "x" else f"list_transform({value}, lambda x: {each})"
    if kind.id == "map":
        each = _finite("x", kind.children[1][1])
        values = f"list_transform(map_values({value}), lambda x: {each})"
        return value if each == "x" else f"map(map_keys({value}), {values})"
    if kind.id == "struct":
        old = {_quoted(name): f"{value}.{_quoted(name)}" for name, _ in kind.children}
        new = {name: _finite(old[name], kind) for name, (_, kind) in zip(old, kind.children)}
        packed = ", ".join(f"{name} := {part}" for name, part in new.items())
        whole = f"CASE WHEN {value} IS NOT NULL THEN struct_pack({packed}) END"
        return value if new == old else whole
    return value


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
