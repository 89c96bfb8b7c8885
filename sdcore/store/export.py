"""A run's tables as Parquet files, in a folder or an object store, which `datasets` can load."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import fsspec
import polars as pl

from sdcore.errors import DataError, SdcoreError
from sdcore.store.database import Store
from sdcore.store.schema import TABLES, Table

_PARTS = ("condition", "seed")
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)


def export(store: Store, experiment_id: str, target: str) -> dict[str, int]:
    """Write the rows of a run as `<target>/data/<table>/<condition>/seed-<seed>.parquet`.

    Tables without these columns become one file. The card `README.md` names each table as a
    configuration of a Hugging Face dataset: `datasets.load_dataset(target, "rollouts")`.

    Args:
        store: the workspace's tables.
        experiment_id: the run.
        target: an empty or new folder, or an address such as `s3://bucket/prefix`; whatever
            `fsspec` opens, with the credentials that it finds.

    Returns:
        Rows written per table.

    Raises:
        SdcoreError: the library for this kind of address is not installed, or something is there.
        DataError: a text holds the value of a secret of the environment.
    """
    files, root = _open(target)
    written: dict[str, int] = {}
    for name, table in TABLES.items():
        for path, rows in _parts(store, table, experiment_id):
            _refuse_secrets(table, rows)
            files.makedirs(f"{root}/data/{name}/{path}".rpartition("/")[0], exist_ok=True)
            with files.open(f"{root}/data/{name}/{path}.parquet", "wb") as file:
                rows.write_parquet(file)
            written[name] = written.get(name, 0) + len(rows)
    with files.open(f"{root}/README.md", "wb") as file:
        file.write(card(experiment_id, written).encode())
    return written


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
    try:
        files, root = fsspec.url_to_fs(target)
        taken = files.exists(root) and bool(files.find(root))
    except (ImportError, ValueError, OSError) as error:
        install = "pip install the package that it names, 'sdcore[s3]' for s3://"
        fix = install if isinstance(error, ImportError) else ""
        raise SdcoreError(
            "cannot export to this address", got=error, where=target, fix=fix
        ) from error
    if taken:
        raise SdcoreError("something is there already", where=target, fix="name a new folder")
    return files, root.rstrip("/")


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


def _refuse_secrets(table: Table, rows: pl.DataFrame) -> None:
    """No table is meant to hold one; a prompt, a trace or an error message still might."""
    secrets = {k: v for k, v in os.environ.items() if _SECRET.search(k) and len(v) >= 8}
    for column in rows.select(pl.col(pl.String)).iter_columns():
        for name, value in secrets.items():
            if column.str.contains(value, literal=True).any():
                raise DataError(
                    "a secret of the environment stands in a table",
                    got=f"the value of {name}",
                    where=f"{table.name}.{column.name}",
                    fix="find out how it came there, and withdraw it",
                )
