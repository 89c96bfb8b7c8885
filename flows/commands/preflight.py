"""The commands of the preflight: what contexts there are, and what each would tell a model."""

import json
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from flows.commands.terminal import JsonOption, WorkspaceOption, notes, print_table
from sdcore.config import load_experiment
from sdcore.contexts import CONTEXTS

app = typer.Typer()


@app.command()
def contexts(as_json: JsonOption = False) -> None:
    """List the registered contexts: what each tests, and what is predicted of it.

    Example: sdcore contexts
    """
    rows = [
        {
            "context": each.name,
            "needs": ", ".join(sorted(each.needs)),
            "tests": each.about,
            "predicted": each.predicted,
        }
        for each in CONTEXTS.entries().values()
    ]
    print(json.dumps(rows)) if as_json else print_table(pl.DataFrame(rows))


@app.command()
def diagnose(
    experiment: Annotated[Path, typer.Argument(help="TOML file, see deployments/experiments/")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted settings, such as diagnose.problems=64")
    ] = None,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Before any training: does a context give this model a signal that points at its errors?

    Example: sdcore diagnose deployments/experiments/quickstart.toml
    """
    settings, root = load_experiment(experiment, overrides or []), workspace.absolute()
    from flows.servers.own import prefect_server

    with prefect_server(root) as server_address:
        with notes.status("starting Prefect"):
            from flows.diagnose import diagnose as flow
            from tasks.run.interrupts import draining

            server_address()
        with draining():
            found = flow(settings, root)
    from sdcore.reports.preflight import as_dict, printable

    if as_json:
        print(json.dumps(as_dict(found)))
    else:
        for title, frame in printable(settings, found):
            print_table(frame, title=title)
    page = root / "reports" / f"{settings.experiment_id}-diagnosis.html"
    notes.print(f"Report: {page}", soft_wrap=True)
