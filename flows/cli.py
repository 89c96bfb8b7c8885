"""The command `sdcore`: run an experiment, query its tables, report on it, list what there is."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from sdcore.config import Experiment, load_experiment
from sdcore.errors import SdcoreError
from sdcore.store import Store

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console()

WorkspaceOption = Annotated[
    Path, typer.Option(envvar="SDCORE_WORKSPACE", help="folder of tables, checkpoints and reports")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


class Format(StrEnum):
    """Output formats of `sdcore query`."""

    table, csv, json, parquet = "table", "csv", "json", "parquet"


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="TOML file, see deployments/experiments/")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted settings, such as training.rounds=3")
    ] = None,
    workspace: WorkspaceOption = Path("runs"),
    quick: Annotated[bool, typer.Option(help="only the experiment's first seed")] = False,
    dry_run: Annotated[bool, typer.Option(help="print the resolved settings and stop")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run an experiment to its table; run again, it goes on where it stopped."""
    settings = load_experiment(experiment, overrides or [])
    if quick:
        settings = settings.model_copy(update={"seeds": settings.seeds[:1]})
    if dry_run:
        console.print_json(settings.model_dump_json())
        return
    _run(settings, workspace.absolute(), as_json=as_json)


def _run(settings: Experiment, root: Path, *, as_json: bool) -> None:
    from flows.server import prefect_server

    with prefect_server(root) as address:
        from flows.compare_contexts import compare_contexts

        Console(stderr=True).print(f"Prefect: {address.removesuffix('/api')}  workspace: {root}")
        experiment_id = compare_contexts(settings, root)
    _print_summary(root, experiment_id, as_json=as_json)
    report_path = _report(root, experiment_id)
    Console(stderr=True).print(f"Report: {report_path}")


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="one SELECT over the tables of the workspace")],
    workspace: WorkspaceOption = Path("runs"),
    output: Annotated[Format, typer.Option("--format", help="how to print")] = Format.table,
) -> None:
    """Query the tables in SQL; `parquet` writes bytes to standard output."""
    frame = _store(workspace).query(sql)
    if output is Format.csv:
        print(_flat(frame).write_csv(), end="")
    elif output is Format.json:
        print(frame.write_json())
    elif output is Format.parquet:
        frame.write_parquet(sys.stdout.buffer)
    else:
        _print_table(frame)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="experiment id, or a name for its newest run")],
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Print an experiment's table and write its HTML page."""
    experiment_id = _resolve(_store(workspace), run)
    _print_summary(workspace, experiment_id, as_json=as_json)
    Console(stderr=True).print(f"Report: {_report(workspace, experiment_id)}")
