"""What the commands of `sdcore` share: options, tables on the terminal, and finding a run."""

import sys
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdcore.config import Experiment
from sdcore.errors import SdcoreError
from sdcore.store.database import Store

console = Console(width=None if sys.stdout.isatty() else 160)  # files and pipes have no width
notes = Console(stderr=True)

WorkspaceOption = Annotated[
    Path, typer.Option(envvar="SDCORE_WORKSPACE", help="folder of tables, checkpoints and reports")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
RunArgument = Annotated[str, typer.Argument(help="experiment id, or a name for its newest run")]


def print_table(frame: pl.DataFrame, title: str | None = None) -> None:
    """Print a frame as a table, numbers to the right; text in it is data, never markup."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name, dtype in frame.schema.items():
        table.add_column(escape(name), justify="right" if dtype.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*(escape(_cell(value)) for value in row))
    console.print(table)


def open_store(workspace: Path) -> Store:
    """The tables of a workspace.

    Raises:
        SdcoreError: there are none.
    """
    path = workspace / "sdcore.duckdb"
    if not path.exists():
        raise SdcoreError("no tables here", got=str(path), fix="`sdcore run` makes them, or name "
                          "another folder with --workspace")  # fmt: skip
    return Store(path)


def find_run(store: Store, run: str) -> str:
    """The id of an experiment's run: the given one, or the newest of that name.

    Raises:
        SdcoreError: there is none.
    """
    found = store.query(
        "SELECT experiment_id FROM experiments WHERE experiment_id = $run OR name = $run "
        "ORDER BY created_at DESC",
        {"run": run},
    )
    if not len(found):
        raise SdcoreError("no such experiment", got=run, fix="`sdcore list` names them")
    return str(found["experiment_id"][0])


def stored_experiment(store: Store, run: str) -> Experiment:
    """The settings under which a run was started."""
    row = store.rows("experiments", experiment_id=find_run(store, run))
    return Experiment.model_validate_json(row["config"][0])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
