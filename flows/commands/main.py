"""The command `sdcore`: its entry point, and the commands that make and run experiments."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.markup import escape

from flows.commands import files, operate, plan, preflight, tables
from flows.commands.terminal import (
    ExperimentArgument,
    JsonOption,
    OverridesArgument,
    RunArgument,
    WorkspaceOption,
    console,
    find_run,
    notes,
    open_store,
    print_json,
    print_tables,
    served,
    stored_experiment,
)
from flows.settling import settled
from sdcore import __version__
from sdcore.config import Experiment, load_experiment, read_settings
from sdcore.config.shipped import experiment_file
from sdcore.errors import ConfigError, SdcoreError
from sdcore.schedule import Stage
from sdcore.store.database import Store


class Scale(StrEnum):
    """The part of an experiment that is run."""

    FULL = "full"
    SMOKE = "smoke"


WorkersOption = Annotated[
    int,
    typer.Option(min=1, help="processes that train conditions and seeds side by side; "
                 "the GPUs are shared out evenly"),
]  # fmt: skip
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.add_typer(files.app)
app.add_typer(plan.app)
app.add_typer(preflight.app)
app.add_typer(tables.app)
app.add_typer(operate.app)
_UNEXPECTED = "fix: `--debug` shows the traceback"
_NO_SCRATCH = "set TMPDIR to a folder that can be written and has room"
_UNLOADED = "failed to map segment"  # what the loader says of a library that needs memory
_MORE_MEMORY = "raise the limit (`ulimit -v` shows it), or free memory"
_FIXES = {
    errno.ENOSPC: "free disk space, then run the same command again",
    errno.EDQUOT: "free disk space, then run the same command again",
    errno.EROFS: "name a folder that can be written, such as with --workspace",
    errno.EACCES: "name a folder that can be written, such as with --workspace",
    errno.EPERM: "name a folder that can be written, such as with --workspace",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.EFBIG: "raise the limit of a file's size: `ulimit -f unlimited`",
    errno.EMFILE: "raise the limit of open files: `ulimit -n 4096`",
}


def _version(asked: bool) -> None:
    if asked:
        print(f"sdcore {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and warnings")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Compare kinds of feedback for the self-distillation of language models.

    Start with: sdcore run quickstart
    """
    if debug:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "WARNING"


@app.command()
def run(
    experiment: ExperimentArgument,
    overrides: OverridesArgument = None,
    workspace: WorkspaceOption = Path("runs"),
    quick: Annotated[bool, typer.Option("--quick", help="only the first seed")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved settings and stop")
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="start a new run from a file that has changed")
    ] = False,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="add new conditions and seeds of the file to its run"),
    ] = False,
    scale: Annotated[
        Scale,
        typer.Option(help="smoke: every stage once, with tiny random models and few "
                     "problems, to see that the file starts; its numbers mean nothing"),
    ] = Scale.FULL,
    workers: WorkersOption = 1,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run an experiment to its table; the same command again continues where it stopped.

    Other settings on the command line make another run. A file that has changed since its last
    run is refused: --new starts a new run, and --extend trains the conditions and seeds that the
    file has gained in the existing run.

    Example: sdcore run quickstart training.rounds=3 --quick
    """
    changed, file = list(overrides or []), read_settings(experiment_file(experiment))
    if scale is Scale.SMOKE:
        from sdcore.smoke import placeholders

        changed = [*placeholders(file), *changed]
    settings = load_experiment(experiment, changed)
    if quick:
        settings = load_experiment(experiment, [*changed, f"seeds=[{settings.seeds[0]}]"])
    if extend and (new or scale is Scale.SMOKE):
        raise ConfigError(
            "a run is either extended, or new, or a smoke run",
            got=f"--extend with {'--new' if new else '--scale smoke'}",
            expected="one of them",
            fix="leave the other out",
        )
    with _scaled(settings, scale, workspace, extend=extend) as settings:
        if dry_run:
            console.print_json(settings.model_dump_json())
            return
        files.note(file, settings, workspace, new=new)
        run_experiment(settings, workspace, workers=workers, as_json=as_json)


@contextmanager
def _scaled(
    settings: Experiment, scale: Scale, root: Path, *, extend: bool
) -> Iterator[Experiment]:
    """Give the experiment as it is, or its smoke run, which is announced."""
    if scale is Scale.FULL:
        yield settled(settings, root, extend=extend)
        return
    from sdcore.smoke import smoke_run

    with smoke_run(settings, root) as smoke:
        notes.print(smoke.description, soft_wrap=True, markup=False)
        yield smoke


@app.command()
def resume(
    run: RunArgument,
    workspace: WorkspaceOption = Path("runs"),
    workers: WorkersOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Continue a run under the settings that it was started with.

    Example: sdcore resume quickstart
    """
    settings = stored_experiment(open_store(workspace), run)
    run_experiment(settings, workspace, workers=workers, as_json=as_json)


@app.command()
def rerun(
    run: RunArgument,
    stage: Annotated[Stage, typer.Option("--from", help="first stage to redo")],
    condition: Annotated[str, typer.Option(help="a condition of the experiment, or base")],
    round_: Annotated[int, typer.Option("--round", min=0, help="training round, from 0; for "
                      "evaluate: number of rounds that the scored policy was trained")],
    seed: Annotated[int | None, typer.Option(help="only this seed; all seeds if left out")] = None,
    workspace: WorkspaceOption = Path("runs"),
    workers: WorkersOption = 1,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Redo a stage of a round and everything that depends on it, and nothing else.

    The old rows move to tables of the same names in the schema `superseded`.

    Example: sdcore rerun quickstart --from align --condition step_aligned --round 3
    """
    from tasks.run.condition_run import condition_runs, require_stage

    store = open_store(workspace)
    settings = stored_experiment(store, run)
    # Refused here, before the seconds that servers take to start.
    _require_no_search(settings)
    require_stage(store, settings, condition, seed, stage, round_)

    def move_rows() -> None:
        from tasks.maintenance.rerun import supersede
        from tasks.maintenance.restore import require_replaceable
        from tasks.run.lock import run_lock
        from tasks.run.session import Session

        with Session(workspace) as session:
            runs = condition_runs(session, settings, condition, seed)
            for each in runs:
                with run_lock(each):
                    require_replaceable(each, stage, round_)
            for each in runs:
                with run_lock(each):
                    moved = supersede(each, stage, round_)
                counts = ", ".join(f"{count} {name}" for name, count in moved.items() if count)
                notes.print(f"{each.label}: moved {counts or 'nothing'} to superseded")

    run_experiment(settings, workspace, workers=workers, as_json=as_json, first=move_rows)


def _require_no_search(settings: Experiment) -> None:
    """Refuse the run of a search, whose test split has to stay unseen.

    Raises:
        ConfigError: it is one.
    """
    if settings.search_of is not None:
        raise ConfigError(
            "the run of a search is no run by itself: it would be scored on the test split, which "
            "the search keeps for its confirmation",
            got=settings.experiment_id,
            expected="a run of `sdcore run`",
            where=f"the search of {settings.search_of}",
            fix="`sdcore design FILE` continues it",
        )


def run_experiment(
    settings: Experiment,
    root: Path,
    *,
    workers: int = 1,
    as_json: bool = False,
    first: Callable[[], None] = lambda: None,
) -> None:
    """Run an experiment in a workspace to its table, with a Prefect server; call `first` before.

    Raises:
        ConfigError: it is a search's run, whose test split has to stay unseen.
    """
    _require_no_search(settings)
    start = time.perf_counter()
    with served(root) as ready:
        from flows.compare_contexts import compare_contexts

        address = ready().removesuffix("/api")
        notes.print(f"Prefect: {address}  workspace: {root}", soft_wrap=True)
        plan.announce(settings)
        first()
        started = time.perf_counter()
        finished = compare_contexts(settings, root, workers)
    seconds = {"start-up": started - start} | finished.seconds
    tables = _summary(open_store(root, timeout=None), finished.experiment_id)
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
    """Print the table of a run and write its HTML page.

    Example: sdcore report quickstart
    """
    from sdcore.reports.experiment import write_report

    store = open_store(workspace)
    experiment_id = find_run(store, run)
    with notes.status("writing the report"):
        page = write_report(store, experiment_id, workspace / "reports")
    _print_summary(_summary(store, experiment_id), {}, as_json=as_json)
    notes.print(f"Report: {page}", soft_wrap=True)


@app.command("build-tiny-solver")
def build_tiny_solver(
    folder: Annotated[Path, typer.Argument(help="folder for the model")],
    workspace: WorkspaceOption = Path("runs"),
) -> None:
    """Pre-train builtin:tiny-solver from scratch, which takes minutes on two cores.

    Example: sdcore build-tiny-solver my-solver
    """
    with served(workspace) as ready:
        from flows.build_tiny_solver import build_tiny_solver as flow

        ready()
        built = flow(folder.absolute())
    console.print(built)


def _summary(store: Store, experiment_id: str) -> dict[str, pl.DataFrame]:
    """Frames of the printed summary, by name."""
    from sdcore.analysis import comparison

    return {
        "summary": comparison.summary(store, experiment_id),
        "comparisons": store.rows("comparisons", experiment_id=experiment_id),
        "seed_differences": store.rows("seed_differences", experiment_id=experiment_id),
        "signals": comparison.signal_summary(store, experiment_id),
        "warnings": comparison.warnings(store, experiment_id),
        "trials": store.rows("trials", experiment_id=experiment_id),
    }


def _print_summary(
    tables: Mapping[str, pl.DataFrame], more: Mapping[str, object], *, as_json: bool
) -> None:
    """Print the tables; as JSON together with `more`."""
    from sdcore.reports import printing

    if as_json:
        frames = {name: frame.fill_nan(None).to_dicts() for name, frame in tables.items()}
        print_json({**frames, **more})
        return
    print_tables(printing.printable(**tables))


def main() -> None:
    """Entry point: errors are messages; tracebacks come with --debug, anywhere on the line."""
    debug = "--debug" in sys.argv
    _prepare_streams()
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
        known = _of_the_system(error)
        if isinstance(known, SdcoreError):
            code, text = known.exit_code, str(known)
        notes.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
        raise SystemExit(code) from None
    finally:
        if not debug and {"prefect", "duckdb"} & sys.modules.keys():
            _mute_exit()


def _prepare_streams() -> None:
    """Open closed standard streams; escape characters that a stream's encoding does not have.

    The number of a closed one would be given to the next file that is opened, such as the tables,
    and what is printed would go into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest number first
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _of_the_system(error: Exception) -> Exception:
    """Explain an error of the operating system that names a file, or whose fix needs no name.

    One that is met while a file is written, such as a full disk, names none.
    """
    unloaded = isinstance(error, ImportError) and _UNLOADED in str(error)
    if isinstance(error, MemoryError) or unloaded:
        return SdcoreError("no more memory can be had", got=error, fix=_MORE_MEMORY)
    if not isinstance(error, OSError):
        return error
    if isinstance(error, FileNotFoundError) and _folder_is_gone():
        return SdcoreError("the current folder has been deleted", got=error, fix="cd to another")
    unclear = error.filename is None and error.errno not in (*_FIXES, errno.ENOENT)
    if isinstance(error, SdcoreError) or unclear or error.errno is None:
        return error
    return SdcoreError(
        "the system refuses a file",
        got=error.strerror,
        where=os.fspath(error.filename) if isinstance(error.filename, str) else "",
        fix=_NO_SCRATCH
        if "temporary directory" in str(error.strerror)
        else _FIXES.get(error.errno, "repair that file, then run the same command again"),
    )


def _folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _mute_exit() -> None:
    """Let nothing more be printed to standard error.

    Prefect's daemon threads, and errors with their frames, keep modules alive beyond the
    interpreter's end, of which DuckDB's binding would complain with sixty lines. Nothing is lost by
    it.
    """
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
