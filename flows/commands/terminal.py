"""Shared by all commands: options, output on the terminal, and the choice of a run."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Annotated, TextIO

import polars as pl
import typer
from rich.markup import escape
from rich.table import Table

from sdcore.config import Experiment
from sdcore.errors import SdcoreError, did_you_mean
from sdcore.store.database import Store
from sdcore.system.consoles import PlainConsole
from sdcore.system.printable import visible
from tasks.tracking.mlflow_file import follow_if_moved


def on_terminal() -> bool:
    """Return whether standard output is a terminal, rather than a file or a pipe."""
    return sys.stdout is not None and sys.stdout.isatty()  # None: closed


console = PlainConsole(width=None if on_terminal() else 160)  # files and pipes have no width
notes = PlainConsole(stderr=True)

WorkspaceOption = Annotated[
    Path,
    typer.Option(
        envvar="SDCORE_WORKSPACE",
        help="folder of the tables, checkpoints and reports",
        resolve_path=True,  # one folder, one path: services are found again by it
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
RunArgument = Annotated[
    str, typer.Argument(help="id of a run, or name of an experiment for its newest run")
]
ExperimentArgument = Annotated[
    str, typer.Argument(help="name of a shipped experiment, or path of a TOML file")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="dotted settings, such as training.rounds=3")
]


def print_table(frame: pl.DataFrame, title: str | None = None) -> None:
    """Print a frame as a table, numbers to the right; text in it is data, never markup."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name, dtype in frame.schema.items():
        table.add_column(escape(name), justify="right" if dtype.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*(escape(visible(_cell(value))) for value in row))
    console.print(table)


def print_tables(tables: Iterable[tuple[str, pl.DataFrame]]) -> None:
    """Print titled frames, each as `print_table` does."""
    for title, frame in tables:
        print_table(frame, title=title)


def print_json(value: object) -> None:
    """Print a value as one line of JSON, as `--json` asks."""
    print(json.dumps(value))


def emit(text: str) -> None:
    """Print text as it is into files and pipes, and as `visible` gives it on a terminal."""
    print(visible(text) if on_terminal() else text)


def emit_file(path: Path) -> None:
    """Print a file, as `emit` prints text.

    Raises:
        SdcoreError: it is not text, and this is a terminal.
    """
    if not on_terminal():
        sys.stdout.flush()
        with path.open("rb") as file:
            copyfileobj(file, sys.stdout.buffer)
        return
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                sys.stdout.write(visible(line))
    except UnicodeDecodeError as error:
        raise SdcoreError(
            "this format is not text for a terminal", fix="--output FILE writes it into a file"
        ) from error


def enter(workspace: Path) -> None:
    """Point Prefect and MLflow at the workspace.

    Call this before anything that imports Prefect: it reads its settings then, and without them
    makes a folder in the user's home.
    """
    from flows.servers.standing import environment, require_settings

    os.environ.update(environment(workspace))
    require_settings()


def results_alone() -> redirect_stdout[TextIO]:
    """Inside the block, what is printed goes to standard error: a user's function may print too."""
    return redirect_stdout(sys.stderr)


@contextmanager
def served(root: Path) -> Iterator[Callable[[], str]]:
    """Start Prefect's server for a flow; the block calls what it is given once it needs the server.

    What is imported until then is imported while the server starts. Results are printed after the
    block: see `results_alone`.

    Yields:
        the function that waits for the server, and returns its address.
    """
    from flows.servers.own import prefect_server

    with (
        results_alone(),
        prefect_server(root) as server_address,
        notes.status("starting Prefect and MLflow") as status,
    ):

        def ready() -> str:
            address = server_address()
            status.stop()
            return address

        yield ready


def open_store(workspace: Path, *, timeout: float | None = 60.0) -> Store:
    """Open the tables of a workspace, to read them; say whom it waits for, for up to `timeout` s.

    Raises:
        SdcoreError: the workspace has none.
    """
    path, cause = workspace / "sdcore.duckdb", None
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        cause = error
    if cause is not None:
        raise SdcoreError(
            "the workspace has no tables",
            got=getattr(cause, "strerror", None) or cause,
            where=str(path),
            fix="make them with `sdcore run quickstart`, or name another folder with --workspace",
        ) from cause
    follow_if_moved(workspace)
    return Store(path, timeout=timeout, say=partial(notes.print, markup=False, highlight=False))


def newest_run(store: Store, run: str) -> str | None:
    """Return the id of a run, or of an experiment's newest run; None if there is none."""
    runs = store.query(
        "SELECT experiment_id FROM experiments WHERE experiment_id = $run OR name = $run "
        "ORDER BY created_at DESC LIMIT 1",
        {"run": run},
    )
    return str(runs["experiment_id"][0]) if len(runs) else None


def find_run(store: Store, run: str) -> str:
    """Return the id of a run, or of an experiment's newest run.

    Raises:
        SdcoreError: the workspace has no such run.
    """
    run_id = newest_run(store, run)
    if run_id is None:
        known = store.query("SELECT unnest([name, experiment_id]) AS known FROM experiments")
        raise SdcoreError(
            "the workspace has no such run",
            got=run,
            where=str(store.path),
            fix=did_you_mean(run, known["known"]) or "`sdcore list` shows the runs of a workspace",
        )
    return run_id


def stored_experiment(store: Store, run: str) -> Experiment:
    """Return the settings under which a run was started."""
    row = store.rows("experiments", experiment_id=find_run(store, run))
    return Experiment.model_validate_json(row["config"][0])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
