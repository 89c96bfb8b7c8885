"""The commands for a workspace's tables: list, query, tables, why, rescore, export, view."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast, get_args
from urllib.parse import quote

import polars as pl
import typer

from flows.commands.terminal import (
    JsonOption,
    RunArgument,
    WorkspaceOption,
    console,
    emit,
    emit_file,
    enter,
    find_run,
    newest_run,
    notes,
    open_store,
    print_json,
    print_table,
    results_alone,
    served,
    stored_experiment,
)
from flows.settling import settled
from sdcore.config import LlmCriticConfig, load_experiment
from sdcore.errors import ConfigError, SdcoreError, StoreError, did_you_mean
from sdcore.keys import Key
from sdcore.store import reading
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from sdcore.store.sql_views import VIEWS

app = typer.Typer()
SHOWN_ROWS = 40  # of a query, on the terminal


class Format(StrEnum):
    """Output formats of `sdcore query`."""

    table, csv, json, parquet = "table", "csv", "json", "parquet"


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="one SELECT over the tables of the workspace")],
    workspace: WorkspaceOption = Path("runs"),
    form: Annotated[
        Format, typer.Option("--format", help="table: the first rows; the others: all of them")
    ] = Format.table,
    output: Annotated[
        Path | None, typer.Option(help="file for all rows: FILE.parquet, FILE.csv or FILE.json")
    ] = None,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="let the statement read files, as read_csv does")
    ] = False,
) -> None:
    """Query the tables and views in SQL, on a private copy, so that no run waits.

    The statement can only read, and only the tables. A table shows as many rows and columns as fit.

    Example: sdcore query "SELECT condition, avg(correct::int) FROM rollouts GROUP BY ALL"
    """
    store = open_store(workspace)
    if output is not None:
        into = _form(output.suffix)
        if form not in (Format.table, into):
            raise ConfigError(
                "--format and --output name two formats", got=f"{form}, {output}", fix="give one"
            )
        count = reading.write(store, sql, output, into, allow_files=allow_files)
        console.print(f"{output}: {count:,} rows", highlight=False, soft_wrap=True)
    elif form is Format.table:
        _show(store, sql, allow_files=allow_files)
    else:
        with TemporaryDirectory(prefix="sdcore-") as folder:
            file = Path(folder, "result")
            reading.write(store, sql, file, _form(f".{form}"), allow_files=allow_files)
            emit_file(file)


@app.command("list")
def list_(workspace: WorkspaceOption = Path("runs"), as_json: JsonOption = False) -> None:
    """List the runs of a workspace and the progress of each.

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
    emit(frame.write_json()) if as_json else print_table(frame)


@app.command()
def tables(
    name: Annotated[str | None, typer.Argument(help="a table or view; all if left out")] = None,
    as_json: JsonOption = False,
) -> None:
    """Describe each table and view, or one of them with its columns.

    Example: sdcore tables rollouts
    """
    described = _described()
    if name is not None and name not in described:
        raise StoreError(
            "no such table or view",
            got=name,
            expected=", ".join(described),
            fix=did_you_mean(name, described),
        )
    if as_json:
        print_json(described if name is None else described[name])
    elif name is None:
        rows = [{"name": table, "kind": about["kind"], "one row is": about["meaning"]}
                for table, about in described.items()]  # fmt: skip
        print_table(pl.DataFrame(rows))
    else:
        about = described[name]
        key = f"; key: {', '.join(about['key'])}" if about["key"] else ""
        print_table(pl.DataFrame(about["columns"]), title=f"{name}: {about['meaning']}{key}")


@app.command()
def why(
    table: Annotated[str, typer.Argument(help="table of the row, such as rollouts")],
    key: Annotated[str, typer.Argument(help="start of the row's key")],
    other: Annotated[
        str | None, typer.Option("--against", help="another run, an experiment's name, or its file")
    ] = None,
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Trace a row to its inputs, and show which of them have changed or differ elsewhere.

    Example: sdcore why rollouts 3f2a --against my-experiment.toml
    """
    from sdcore.reports.provenance import against, lineage, since

    store = open_store(workspace)
    rows = lineage(store, table, key)
    enter(workspace)
    from tasks.prepare import base_policy, experiment_row
    from tasks.run.condition_run import base_run
    from tasks.run.session import Session

    if other is not None and (run := newest_run(store, other)):
        changes = against(
            store, rows, store.rows("experiments", experiment_id=run).row(0, named=True)
        )
    else:
        settings = (
            settled(load_experiment(other), workspace)
            if other
            else stored_experiment(store, rows[-1].key)
        )
        with Session(workspace) as session:
            base = base_run(session, settings)
            changes = since(rows, experiment_row(base), base_policy(base).sha256)
    if as_json:
        inputs = [{"table": row.table, "key": row.key} | row.inputs for row in rows]
        print_json({"lineage": inputs, "changes": [asdict(change) for change in changes]})
        return
    lines = [(row.table, row.key, *item) for row in rows for item in row.inputs.items()]
    print_table(pl.DataFrame(lines, ["table", "key", "input", "value"], orient="row"), "made from")
    title = "changed since" if other is None else f"different in {other}"
    differences = [(change.where, change.what) for change in changes] or [("", "nothing")]
    print_table(pl.DataFrame(differences, ["where", "what"], orient="row"), title)


@app.command()
def rescore(
    run: RunArgument, workspace: WorkspaceOption = Path("runs"), as_json: JsonOption = False
) -> None:
    """Grade the stored rollouts of a run again, then score and compare; nothing is sampled.

    The old versions of rows that change move to the schema `superseded`.

    Example: sdcore rescore quickstart
    """
    settings = stored_experiment(open_store(workspace), run)
    enter(workspace)
    from tasks.maintenance.rescore import rescore as regrade
    from tasks.run.condition_run import base_run
    from tasks.run.session import Session

    status = notes.status("grading, scoring and comparing")
    with results_alone(), status, Session(workspace) as session:
        counts = regrade(base_run(session, settings))
    print_json(counts) if as_json else print_table(pl.DataFrame([counts]))
    report = workspace / "reports" / f"{settings.experiment_id}.html"
    if counts["changed"] and report.exists():
        notes.print(f"Report: {report}", soft_wrap=True)


@app.command()
def export(
    run: RunArgument,
    target: Annotated[
        str, typer.Argument(help="a new folder, or an address such as s3://bucket/prefix")
    ],
    workspace: WorkspaceOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Write a run's tables as Parquet files, which Hugging Face `datasets` can load.

    Every text is searched first for the key of the run's critic, for those in the environment and
    for what looks like a key; if one is found, nothing is written.

    Example: sdcore export quickstart quickstart-tables
    """
    from sdcore.store.export import export as write

    store = open_store(workspace)
    experiment_id = find_run(store, run)
    critic = stored_experiment(store, run).critic
    keys = _keys(critic.models if critic else (), workspace)
    with notes.status(f"writing {target}"):
        counts = write(store, experiment_id, target, keys)
    rows = pl.DataFrame(list(counts.items()), ["table", "rows"], orient="row")
    print_json(counts) if as_json else print_table(rows, title=target)


def _keys(models: Sequence[LlmCriticConfig], workspace: Path) -> dict[str, Key]:
    """The keys of a run's critics by where they are from; a note names those that are not there."""
    variables = sorted({each.api_key_env for each in models if each.api_key_env})
    blocks = sorted({each.api_key_block for each in models if each.api_key_block})
    found = {f"${name}": os.environ.get(name) for name in variables}
    if blocks:
        with served(workspace) as ready:
            from tasks.run.critiques import secret_block

            ready()
            found |= {f"the block secret/{name}": secret_block(name) for name in blocks}
    texts = {where: (text or "").strip() for where, text in found.items()}
    for where in (where for where, text in texts.items() if not text):
        notes.print(
            f"The run's critic had a key of {where}, which is not there now: texts are searched "
            "only for what looks like a key.",
            soft_wrap=True,
        )
    return {where: Key(text) for where, text in texts.items() if text}


@app.command()
def view(
    run: RunArgument,
    workspace: WorkspaceOption = Path("runs"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port of the page; 0: a free one")
    ] = 0,
) -> None:
    """Browse a run's problems, rollouts, critiques and tokens on a local page, until Ctrl-C.

    Nothing is uploaded. Open the printed link: it brings the key that the page asks for, so that
    the machine's other users cannot read it. The key is valid for as long as the command runs.

    Example: sdcore view quickstart
    """
    from flows.servers.guard import guarded
    from flows.servers.login import link, new_login
    from flows.servers.standing import require_free
    from sdcore.reports.viewer.server import serve, viewer
    from sdcore.system.ports import free_port

    store = open_store(workspace)
    experiment_id, port = find_run(store, run), port or free_port()
    require_free("the page", port, f"sdcore view {run} --port N")
    known = new_login()
    print(link(known, f"http://127.0.0.1:{port}"), flush=True)
    serve(guarded(viewer(store), known, f"/{quote(experiment_id)}"), port)


def _show(store: Store, sql: str, *, allow_files: bool) -> None:
    """Print the rows and columns that fit the terminal, and how to get the others."""
    shown = reading.show(store, sql, rows=SHOWN_ROWS, width=console.width, allow_files=allow_files)
    emit(shown.text)
    if not shown.complete:
        emit(
            f"the first {SHOWN_ROWS} rows at most, and what fits; all of it: --output FILE.parquet"
        )


def _form(suffix: str) -> reading.FileFormat:
    """Return the format that the end of a file's name stands for."""
    for form in get_args(reading.FileFormat):
        if suffix == f".{form}":
            return cast(reading.FileFormat, form)
    raise SdcoreError(
        "not a file that a result can be written to",
        got=f"a name that ends with {suffix!r}",
        expected=".parquet, .csv or .json",
        where="--output",
    )


def _described() -> dict[str, dict[str, Any]]:
    """Tables and views by name: kind, meaning, key and columns."""
    stored = {
        name: {"kind": "table", "meaning": table.meaning, "key": table.key}
        | {"columns": [{"column": c.name, "type": c.sql_type, "meaning": c.meaning,
                        "empty": "sometimes" if c.nullable else "never"} for c in table.columns]}
        for name, table in TABLES.items()
    }  # fmt: skip
    return stored | {
        name: {"kind": "view", "meaning": view.meaning, "key": ()}
        | {"columns": [{"column": c, "meaning": text} for c, text in view.columns.items()]}
        for name, view in VIEWS.items()
    }
