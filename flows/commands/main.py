"""The command `sdcore`: run an experiment, query its tables, report on it, list what there is."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.markup import escape

from flows.commands import operate, preflight, tables
from flows.commands.terminal import (
    JsonOption,
    RunArgument,
    WorkspaceOption,
    console,
    find_run,
    notes,
    open_store,
    print_table,
    stored_experiment,
)
from sdcore.config import Experiment, drift, load_experiment
from sdcore.errors import ConfigError, SdcoreError
from sdcore.schedule import Stage
from sdcore.store.database import Store

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.add_typer(preflight.app)
app.add_typer(tables.app)
app.add_typer(operate.app)
_UNEXPECTED = "fix: `--debug` shows where it came from"


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and warnings")] = False,
) -> None:
    """Feedback design for self-distillation: run experiments, query them, operate them.

    Start with: sdcore run deployments/experiments/quickstart.toml
    """
    if debug:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "WARNING"


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="TOML file, see deployments/experiments/")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="dotted settings, such as training.rounds=3")
    ] = None,
    workspace: WorkspaceOption = Path("runs"),
    quick: Annotated[bool, typer.Option(help="only the experiment's first seed")] = False,
    dry_run: Annotated[bool, typer.Option(help="print the resolved settings and stop")] = False,
    new: Annotated[bool, typer.Option(help="a changed experiment is a run of its own")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run an experiment to its table; run again, it goes on where it stopped.

    Settings that differ from an earlier run of that name are refused, unless --new is given.

    Example: sdcore run deployments/experiments/quickstart.toml training.rounds=3 --quick
    """
    settings = load_experiment(experiment, overrides or [])
    if quick:
        settings = load_experiment(experiment, [*(overrides or []), f"seeds=[{settings.seeds[0]}]"])
    if dry_run:
        console.print_json(settings.model_dump_json())
        return
    if not new:
        _refuse_drift(settings, workspace)
    _run(settings, workspace.absolute(), as_json=as_json)


@app.command()
def resume(
    run: RunArgument, workspace: WorkspaceOption = Path("runs"), as_json: JsonOption = False
) -> None:
    """Go on with a run, under the settings that it was started with.

    Example: sdcore resume quickstart
    """
    _run(stored_experiment(open_store(workspace), run), workspace.absolute(), as_json=as_json)


@app.command()
def rerun(
    run: RunArgument,
    stage: Annotated[Stage, typer.Option("--from", help="the first stage to redo")],
    condition: Annotated[str, typer.Option(help="of the experiment, or base")],
    round_: Annotated[int, typer.Option("--round", min=0, help="training round, from 0; for "
                      "evaluate: rounds behind the scored policy")],
    seed: Annotated[int | None, typer.Option(help="one seed only; all if left out")] = None,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Redo a stage of a round and all that depends on it, and nothing else.

    The rows that were there move to tables of the same names in the schema `superseded`.

    Example: sdcore rerun quickstart --from align --condition step_aligned --round 3
    """
    settings, root = stored_experiment(open_store(workspace), run), workspace.absolute()

    def supersede_stage() -> None:
        from tasks.maintenance.rerun import supersede
        from tasks.run.condition_run import condition_runs
        from tasks.run.lock import run_lock
        from tasks.run.session import Session

        with Session(root) as session:
            for each in condition_runs(session, settings, condition, seed):
                with run_lock(each):
                    moved = supersede(each, stage, round_)
                counts = ", ".join(f"{count} {name}" for name, count in moved.items() if count)
                notes.print(f"{each.label}: superseded {counts or 'nothing'}")

    _run(settings, root, as_json=as_json, first=supersede_stage)


def _refuse_drift(settings: Experiment, workspace: Path) -> None:
    """Raise if the newest run of this name had other settings, and none had these."""
    path = workspace / "sdcore.duckdb"
    runs = Store(path).rows("experiments", name=settings.name) if path.exists() else pl.DataFrame()
    if not len(runs) or settings.experiment_id in runs["experiment_id"]:
        return
    last = runs.sort("created_at").row(-1, named=True)
    changes = drift(json.loads(last["config"]), settings.model_dump(mode="json"))
    raise ConfigError(
        f"the experiment differs from its last run, {last['experiment_id']}",
        got="; ".join(changes),
        where=str(workspace),
        fix="`--new` starts a run of its own, `sdcore resume` goes on with the last one",
    )


def _run(
    settings: Experiment, root: Path, *, as_json: bool, first: Callable[[], None] = lambda: None
) -> None:
    from flows.servers.own import prefect_server

    start = time.perf_counter()
    with prefect_server(root) as server_address:
        with notes.status("starting Prefect and MLflow"):
            from flows.compare_contexts import compare_contexts

            address = server_address().removesuffix("/api")
        notes.print(f"Prefect: {address}  workspace: {root}", soft_wrap=True)
        first()
        started = time.perf_counter()
        finished = compare_contexts(settings, root)
    seconds = {"start-up": started - start} | finished.seconds
    tables = _summary(root, finished.experiment_id)
    _print_summary(tables, {"seconds": seconds}, as_json=as_json)
    notes.print(f"Report: {root / 'reports' / finished.experiment_id}.html", soft_wrap=True)
    wall = sum(seconds.values())
    shares = (f"{kind} {spent:.0f} s ({spent / wall:.1%})" for kind, spent in seconds.items())
    notes.print(f"Time: {wall:.0f} s: {', '.join(shares)}", soft_wrap=True)


@app.command()
def report(
    run: RunArgument,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Print an experiment's table and write its HTML page.

    Example: sdcore report quickstart
    """
    experiment_id = find_run(open_store(workspace), run)
    with notes.status("writing the report"):
        page = _report(workspace, experiment_id)
    _print_summary(_summary(workspace, experiment_id), {}, as_json=as_json)
    notes.print(f"Report: {page}", soft_wrap=True)


@app.command("list")
def list_(workspace: WorkspaceOption = Path("runs"), as_json: JsonOption = False) -> None:
    """List the experiments of a workspace and how far each has come.

    Example: sdcore list --workspace runs
    """
    frame = open_store(workspace).query(
        """
        SELECT experiment_id, created_at AS started,
            (SELECT count(*) FROM rollouts r WHERE r.experiment_id = e.experiment_id) AS rollouts,
            (SELECT max(step) FROM updates u WHERE u.experiment_id = e.experiment_id) AS steps,
            EXISTS (FROM comparisons c WHERE c.experiment_id = e.experiment_id) AS compared
        FROM experiments e ORDER BY started DESC
        """
    )
    print(frame.write_json()) if as_json else print_table(frame)


@app.command("critic-eval")
def critic_eval(
    experiment: Annotated[Path, typer.Argument(help="TOML file with the critic and the problems")],
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted settings")] = None,
    solutions: Annotated[int, typer.Option(min=2, help="at most so many are judged")] = 200,
    processbench: Annotated[
        Path | None, typer.Option(help="JSONL in ProcessBench's format, for problems of your own")
    ] = None,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Measure a critic on solutions whose first wrong step is known.

    Example: sdcore critic-eval deployments/experiments/gsm8k-critic.toml --solutions 50
    """
    settings = load_experiment(experiment, overrides or [])
    from flows.servers.own import prefect_server

    with prefect_server(workspace.absolute()) as server_address:
        with notes.status("starting Prefect"):
            from flows.critic_eval import critic_eval as flow

            server_address()
        scores = flow(settings, workspace.absolute(), solutions, processbench)
    print(json.dumps(scores)) if as_json else print_table(
        pl.DataFrame([scores]).transpose(
            include_header=True, header_name="score", column_names=["value"]
        )
    )


@app.command("build-tiny-solver")
def build_tiny_solver(
    folder: Annotated[Path, typer.Argument(help="where the model is written")],
    workspace: WorkspaceOption = Path("runs"),
) -> None:
    """Pre-train builtin:tiny-solver from scratch (minutes on two cores).

    Example: sdcore build-tiny-solver my-solver
    """
    from flows.servers.own import prefect_server

    with prefect_server(workspace.absolute()) as server_address:
        with notes.status("starting Prefect"):
            from flows.build_tiny_solver import build_tiny_solver as flow

            server_address()
        console.print(flow(folder.absolute()))


def _report(root: Path, experiment_id: str) -> Path:
    from sdcore.reports.experiment import write_report

    return write_report(open_store(root), experiment_id, root / "reports")


def _summary(root: Path, experiment_id: str) -> dict[str, pl.DataFrame]:
    """The table and what belongs to it."""
    from sdcore.analysis import comparison

    store = open_store(root)
    return {
        "summary": comparison.summary(store, experiment_id),
        "comparisons": store.rows("comparisons", experiment_id=experiment_id),
        "signals": comparison.signal_summary(store, experiment_id),
    }


def _print_summary(
    tables: Mapping[str, pl.DataFrame], more: Mapping[str, object], *, as_json: bool
) -> None:
    """Print the tables; as JSON with what else there is to say of them."""
    from sdcore.reports import printing

    if as_json:
        frames = {name: frame.to_dicts() for name, frame in tables.items()}
        print(json.dumps({**frames, **more}))
        return
    for title, frame in printing.printable(**tables):
        print_table(frame, title=title)


def main() -> None:
    """Entry point: errors are messages; tracebacks come with --debug, anywhere on the line."""
    debug = "--debug" in sys.argv
    command = partial(app, sorted(sys.argv[1:], key=lambda argument: argument != "--debug"))
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's
            from sdcore.distributed.controller import lead

            lead(command)
        else:
            command()
    except Exception as error:
        if debug:
            raise
        code, text = 1, f"{type(error).__name__}: {error}\n  {_UNEXPECTED}"
        if isinstance(error, SdcoreError):
            code, text = error.exit_code, str(error)
        notes.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
        raise SystemExit(code) from None
    finally:
        if "prefect" in sys.modules and not debug:
            _mute_exit()


def _mute_exit() -> None:
    """Let nothing more be printed to standard error.

    Prefect's daemon threads keep modules alive beyond the interpreter's end, of which DuckDB's
    binding would complain with sixty lines. Nothing is lost by it.
    """
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
