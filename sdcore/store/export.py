"""A run's tables as Parquet files, in a folder or an object store, which `datasets` can load."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from sdcore.errors import DataError, SdcoreError
from sdcore.keys import LOOKS_LIKE_A_KEY, Key, environment_keys
from sdcore.store.database import Store
from sdcore.store.parts import file_system
from sdcore.store.schema import TABLES, Table

_PARTS = ("condition", "seed")


def export(
    store: Store, experiment_id: str, target: str, keys: Mapping[str, Key] | None = None
) -> dict[str, int]:
    """Write the rows of a run as `<target>/data/<table>/<condition>/seed-<seed>.parquet`.

    Tables without these columns become one file. The card `README.md` names each table as a
    configuration of a Hugging Face dataset: `datasets.load_dataset(target, "rollouts")`.

    No row is meant to hold a key; a prompt, a trace or an error message still might. Every text is
    searched for the given keys and those of the environment, in any encoding, and for what looks
    like a key. Nothing about a key is stored, so one that is no longer known can only be noticed by
    its looks.

    Args:
        store: the workspace's tables.
        experiment_id: the run.
        target: an empty or new folder, or an address such as `s3://bucket/prefix`; whatever
            `fsspec` opens, with the credentials that it finds.
        keys: those that the run was given, by where they are from.

    Returns:
        Rows written per table.

    Raises:
        SdcoreError: the library for this kind of address is not installed, or something is there.
        SdcoreError: a file cannot be written.
        DataError: a text holds a key, or what looks like one.
    """
    known = environment_keys() | dict(keys or {})
    written: dict[str, int] = {}
    with (
        TemporaryDirectory(prefix="sdcore-") as folder,
        Store(store.copied(Path(folder))) as copy,  # what is searched is what is written
    ):
        for table in TABLES.values():
            for _, rows in _parts(copy, table, experiment_id):
                _refuse_keys(table, rows, known)
        files, root = _open(target)
        for name, table in TABLES.items():
            for path, rows in _parts(copy, table, experiment_id):
                with _new_file(files, f"{root}/data/{name}/{path}.parquet") as file:
                    rows.write_parquet(file)
                written[name] = written.get(name, 0) + len(rows)
    with _new_file(files, f"{root}/README.md") as file:
        file.write(card(experiment_id, written).encode())
    return written


@contextmanager
def _new_file(files: Any, path: str) -> Iterator[Any]:
    try:
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        with files.open(path, "wb") as file:
            yield file
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SdcoreError(
            "a file of the export cannot be written: what is there is not whole",
            got=error,
            where=path,
            fix="make room or name another target; delete what this one has",
        ) from error


def exported(target: str) -> dict[str, pl.DataFrame]:
    """Return the rows that `export` wrote to a folder or address, by table.

    Raises:
        SdcoreError: the library for this kind of address is not installed.
        DataError: nothing was exported there, or a file cannot be read.
    """
    files, root = file_system(target)
    frames: dict[str, pl.DataFrame] = {}
    for name, table in TABLES.items():
        paths = sorted(files.glob(f"{root}/data/{name}/**/*.parquet"))
        if paths:
            frames[name] = table.checked(pl.concat(_read(files, path) for path in paths))
    if "experiments" not in frames:
        raise DataError(
            "nothing was exported here",
            got=f"tables: {', '.join(frames) or 'none'}",
            expected="what `sdcore export` wrote: data/experiments/all.parquet, and so on",
            where=target,
        )
    return frames


def _read(files: Any, path: str) -> pl.DataFrame:
    try:
        with files.open(path, "rb") as file:
            return pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError("an exported file cannot be read", got=error, where=path) from error


def card(experiment_id: str, written: Mapping[str, int]) -> str:
    """The dataset card: one configuration a table, and what its columns mean."""
    configs = [
        f'- config_name: {name}\n  data_files:\n  - split: rows\n    path: "data/{name}/**"'
        for name in written
    ]
    parts = chain.from_iterable(_described(TABLES[name], rows) for name, rows in written.items())
    return "\n".join([
        "---", f"pretty_name: {json.dumps(experiment_id)}", "configs:", *configs, "---", "",
        f"# {experiment_id}", "", "The tables of a run of sdcore, one configuration each:", "",
        "```python", f'datasets.load_dataset(folder, "{next(iter(written))}", split="rows")',
        "```", "", *parts,
    ])  # fmt: skip


def _described(table: Table, rows: int) -> Iterator[str]:
    yield f"## {table.name}\n\n{rows:,} rows, each {table.meaning}. Key: {', '.join(table.key)}.\n"
    yield "| column | type | meaning |\n|---|---|---|"
    for column in table.columns:
        meaning = column.meaning.replace("|", "\\|")
        yield f"| {column.name} | {column.sql_type} | {meaning} |"
    yield ""


def _open(target: str) -> tuple[Any, str]:
    files, root = file_system(target)
    if not root:
        raise SdcoreError(
            "not a place for an export",
            got=repr(target),
            expected="a folder, or an address with a bucket, such as s3://bucket/prefix",
        )
    if files.exists(root) and files.find(root):
        raise SdcoreError("something is there already", where=target, fix="name a new folder")
    return files, root


def _parts(store: Store, table: Table, experiment_id: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """The table's rows of a run, in its files: name without ending, rows in order of the key."""
    run = {"experiment_id": experiment_id}
    if not set(_PARTS) <= set(table.dtypes):
        rows = store.rows(table.name, **run)
        yield from [("all", rows.sort(table.key))] if len(rows) else []
        return
    parts = store.query(
        f"SELECT DISTINCT condition, seed FROM {table.name} "  # noqa: S608 - a name of the schema
        "WHERE experiment_id = $experiment_id ORDER BY ALL",
        run,
    )
    for condition, seed in parts.iter_rows():
        rows = store.rows(table.name, condition=condition, seed=seed, **run)
        yield f"{condition}/seed-{seed}", rows.sort(table.key)


def _refuse_keys(table: Table, rows: pl.DataFrame, keys: Mapping[str, Key]) -> None:
    patterns = {f"the value of {name}": key.pattern for name, key in keys.items()}
    patterns["what looks like a key"] = LOOKS_LIKE_A_KEY
    for column in rows.select(pl.col(pl.String)).columns:
        for name, pattern in patterns.items():
            for row in rows.filter(pl.col(column).str.contains(pattern)).iter_rows(named=True):
                raise DataError(
                    "a key stands in a table",
                    got=name,
                    where=f"{table.name}.{column}, "
                    + ", ".join(f"{part} = {row[part]}" for part in table.key),
                    fix="find out how it came there, and withdraw it",
                )
