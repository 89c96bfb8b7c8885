"""The commands that operate a workspace: its services, its health, its champion."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.terminal import (
    JsonOption,
    RunArgument,
    WorkspaceOption,
    console,
    notes,
    open_store,
    stored_experiment,
)
from flows.servers import standing
from sdcore.errors import SdcoreError

app = typer.Typer()
PrefectPort = Annotated[int, typer.Option(min=1, max=65535, help="port of the Prefect server")]
MlflowPort = Annotated[int, typer.Option(min=1, max=65535, help="port of the MLflow server")]
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@app.command()
def up(
    workspace: WorkspaceOption = Path("runs"),
    prefect_port: PrefectPort = 4200,
    mlflow_port: MlflowPort = 5000,
) -> None:
    """Start Prefect, MLflow and the deployments of this workspace, on loopback only.

    Example: sdcore up --prefect-port 4300, then open the printed address and start "quickstart".
    """
    root = workspace.absolute()
    standing.require_workspace(root)
    if set(standing.addresses(root)) == {"prefect", "mlflow"} and standing.processes(
        root, "deployments"
    ):
        notes.print("already up")
    else:
        standing.stop(root)  # what is left of an earlier start
        with notes.status("starting Prefect, MLflow and the deployments"):
            standing.start(root, {"prefect": prefect_port, "mlflow": mlflow_port})
    for name, address in standing.addresses(root).items():
        console.print(f"{name:<8} {address}", soft_wrap=True)


@app.command()
def down(workspace: WorkspaceOption = Path("runs")) -> None:
    """End all that `sdcore up` started, runs of deployments included.

    Such a run goes on where it stopped when it is started again.

    Example: sdcore down
    """
    count = standing.stop(workspace.absolute())
    notes.print(f"{count} processes ended" if count else "nothing was up")


@app.command()
def status(workspace: WorkspaceOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Say which services of the workspace run, and where.

    Example: sdcore status --json
    """
    root = workspace.absolute()
    found = standing.addresses(root)
    rows = {
        name: {
            "address": found.get(name, ""),
            "processes": [process.pid for process in standing.processes(root, name)],
        }
        for name in standing.NAMES
    }
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("service", "state", "address", "processes", header_style="bold")
    for name, row in rows.items():
        state = "[green]up[/]" if row["processes"] else "down"
        table.add_row(name, state, str(row["address"]), str(len(row["processes"])))
    console.print(table)


@app.command()
def doctor(
    workspace: WorkspaceOption = Path("runs"),
    prefect_port: PrefectPort = 4200,
    mlflow_port: MlflowPort = 5000,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and the workspace, and say the fix for what is wrong.

    Ends with exit code 1 if something will not work.

    Example: sdcore doctor --workspace /data/runs
    """
    from flows.servers.doctor import examine

    findings = examine(workspace.absolute(), {"prefect": prefect_port, "mlflow": mlflow_port})
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table("", "found", "fix", header_style="bold")
        for each in findings:
            name = f"[{COLOURS[each.state]}]{each.name}[/]"
            table.add_row(name, escape(each.found), escape(each.fix))
        console.print(table)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def promote(
    run: RunArgument,
    lineage: Annotated[str, typer.Argument(help="condition/seed, such as step_aligned/0")],
    workspace: WorkspaceOption = Path("runs"),
) -> None:
    """Make a condition's policy the champion in MLflow, whatever validation says.

    Its checkpoint is the one chosen on validation; runs of this experiment leave it champion.

    Example: sdcore promote quickstart step_aligned/0
    """
    condition, _, seed = lineage.rpartition("/")
    experiment = stored_experiment(open_store(workspace), run)
    if condition not in experiment.conditions or seed not in map(str, experiment.seeds):
        known = [f"{name}/{seed}" for name in experiment.conditions for seed in experiment.seeds]
        raise SdcoreError("no such condition and seed", got=lineage, expected=", ".join(known))
    with notes.status("opening MLflow"):
        from tasks.run.condition_run import ConditionRun
        from tasks.run.session import Session
        from tasks.tracking.champions import promote as promote_run

        with Session(workspace.absolute()) as session:
            version = promote_run(ConditionRun(session, experiment, condition, int(seed)))
    console.print(f"{experiment.name} version {version} is the champion")
