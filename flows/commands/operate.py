"""The commands that operate a workspace: up, down, status, doctor, promote, prune."""

from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.terminal import (
    JsonOption,
    RunArgument,
    WorkspaceOption,
    console,
    enter,
    notes,
    open_store,
    print_json,
    print_table,
    stored_experiment,
)
from sdcore.errors import ConfigError, SdcoreError, did_you_mean

app = typer.Typer()
_say = partial(notes.print, soft_wrap=True, markup=False, highlight=False)
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

    Both servers ask for the workspace's key. The page that is printed last logs a browser in; only
    you can read it.

    Example: sdcore up --prefect-port 4300, then open the printed address and start "quickstart".
    """
    from flows.servers import standing
    from flows.servers.login import PAGE
    from flows.servers.named import named

    if prefect_port == mlflow_port:
        raise ConfigError("both servers are given the same port", got=prefect_port, fix="give two")
    standing.require_workspace(workspace)
    for line in named(workspace, up=True).values():
        _say(line)
    with standing.starting(workspace, _say):
        if set(standing.addresses(workspace)) == {"prefect", "mlflow"} and standing.processes(
            workspace, "deployments"
        ):
            notes.print("already up")
        else:
            standing.stop(workspace)  # remains of an earlier start
            with notes.status("starting Prefect, MLflow and the deployments"):
                standing.start(workspace, {"prefect": prefect_port, "mlflow": mlflow_port})
    for name, address in standing.addresses(workspace).items():
        console.print(f"{name:<8} {address}", soft_wrap=True)
    console.print(f"{'log in':<8} {(workspace / PAGE).as_uri()}", soft_wrap=True)


@app.command()
def down(workspace: WorkspaceOption = Path("runs")) -> None:
    """Stop everything that `sdcore up` started, runs of deployments included.

    A run that is stopped continues where it was when it is started again.

    Example: sdcore down
    """
    from flows.servers import standing

    # A workspace that is read-only, or none at all, needs nothing written.
    known = standing.was_started(workspace)
    with standing.starting(workspace, _say) if known else nullcontext():
        count = standing.stop(workspace)
    notes.print(f"{count} processes stopped" if count else "no services were running")


@app.command()
def status(workspace: WorkspaceOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Show which services of the workspace are running, and their addresses.

    Example: sdcore status --json
    """
    from flows.servers import standing

    addresses = standing.addresses(workspace)
    processes = {
        name: [p.pid for p in standing.processes(workspace, name)] for name in standing.NAMES
    }
    if as_json:
        services = {
            name: {"address": addresses.get(name, ""), "processes": running}
            for name, running in processes.items()
        }
        print_json(services)
        return
    table = Table("service", "state", "address", "processes", header_style="bold")
    for name, running in processes.items():
        state = "[green]up[/]" if running else "down"
        table.add_row(name, state, addresses.get(name, ""), str(len(running)))
    console.print(table)


@app.command()
def doctor(
    workspace: WorkspaceOption = Path("runs"),
    prefect_port: PrefectPort = 4200,
    mlflow_port: MlflowPort = 5000,
    repair: Annotated[
        bool, typer.Option("--repair", help="move what is damaged aside, so that it is made again")
    ] = False,
    export: Annotated[
        list[str] | None,
        typer.Option(help="what `sdcore export` wrote, for --repair to rebuild damaged tables"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and the workspace, and give a fix for each problem.

    Every table, checkpoint and database is read whole; nothing is changed without --repair, which
    keeps what it replaces beside it. The exit code is 1 if something will not work.

    Example: sdcore doctor --workspace /data/runs
    """
    from flows.doctor import examine

    if export and not repair:
        raise ConfigError("--export is for --repair", fix="give both, or neither")
    if repair:
        from flows.doctor.repair import repair as repaired

        for line in repaired(workspace, export or []):
            _say(line)
    findings = examine(workspace, {"prefect": prefect_port, "mlflow": mlflow_port})
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("check", "state", "result", "fix", header_style="bold")
        for finding in findings:
            state = f"[{COLOURS[finding.state]}]{finding.state}[/]"
            table.add_row(finding.name, state, escape(finding.found), escape(finding.fix))
        console.print(table)
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def promote(
    run: RunArgument,
    lineage: Annotated[
        str, typer.Argument(metavar="CONDITION/SEED", help="such as step_aligned/0")
    ],
    workspace: WorkspaceOption = Path("runs"),
) -> None:
    """Make the policy of a condition and seed the champion in MLflow, whatever its score.

    The checkpoint is the one chosen on validation. Later runs of the experiment keep this champion.

    Example: sdcore promote quickstart step_aligned/0
    """
    condition, _, seed = lineage.rpartition("/")
    experiment = stored_experiment(open_store(workspace), run)
    if condition not in experiment.conditions or seed not in map(str, experiment.seeds):
        known = [f"{name}/{seed}" for name in experiment.conditions for seed in experiment.seeds]
        raise SdcoreError(
            "the experiment has no such condition and seed",
            got=lineage,
            expected=", ".join(known),
            fix=did_you_mean(lineage, known),
        )
    enter(workspace)
    with notes.status("opening MLflow"):
        from tasks.run.condition_run import ConditionRun
        from tasks.run.session import Session
        from tasks.tracking.champions import promote as promote_run

        with Session(workspace) as session:
            version = promote_run(ConditionRun(session, experiment, condition, int(seed)))
    console.print(f"{experiment.name} version {version} is the champion")


@app.command()
def prune(
    run: RunArgument,
    unchosen: Annotated[
        bool, typer.Option(help="free scored checkpoints too that validation did not choose")
    ] = False,
    delete: Annotated[bool, typer.Option(help="delete; without it the files are listed")] = False,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """List the checkpoint files of a run that nothing needs, or delete them; all rows stay.

    Scored checkpoints, the champion, and what training continues from are kept. Redoing a stage of
    an earlier round then trains again from the last checkpoint with the optimizer's moments.

    Example: sdcore prune quickstart --delete
    """
    experiment = stored_experiment(open_store(workspace), run)
    enter(workspace)
    with notes.status("opening MLflow"):
        from tasks.maintenance.prune import prune as prune_run
        from tasks.run.condition_run import base_run
        from tasks.run.session import Session

        with Session(workspace) as session:
            base = base_run(session, experiment)
            freed = prune_run(base, unchosen=unchosen, delete=delete)
    rows = [
        {
            "checkpoint": str(each.folder.relative_to(workspace)),
            "part": each.part,
            "bytes": each.size,
        }
        for each in freed
    ]
    total = sum(each.size for each in freed)
    if as_json:
        print_json({"deleted": delete, "bytes": total, "freed": rows})
        return
    if rows:
        print_table(pl.DataFrame(rows))
    verb = "freed" if delete else "would be freed: repeat the command with --delete"
    console.print(f"{total:,} bytes {verb}" if rows else "nothing to free")
