"""The commands for experiment files, and the check that a file is the one of its last run."""

import json
import re
from itertools import islice
from pathlib import Path
from shutil import copyfile
from typing import Annotated, Any

import typer

from flows.commands.terminal import console, newest_run, open_store
from flows.settling import joined
from sdcore.config import Experiment, drift, read_settings
from sdcore.config.shipped import SCHEMA, experiment_file
from sdcore.errors import ConfigError
from sdcore.reference import experiment_schema

app = typer.Typer()


@app.command()
def init(
    target: Annotated[Path, typer.Argument(help="experiment file to write, such as my.toml")],
    example: Annotated[
        str, typer.Option("--from", help="the shipped experiment, or the file, to start from")
    ] = "quickstart",
) -> None:
    """Copy a shipped experiment, comments included, as the start of your own.

    The copy is named after its file. The JSON schema of experiment files is written beside it, so
    that editors can complete and check the settings.

    Example: sdcore init my.toml --from laptop
    """
    source = experiment_file(example)
    read_settings(source)  # refuses a file that is no TOML
    if target.exists():
        raise ConfigError("the file already exists", got=target, fix="give the copy another name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\.toml", target.name):
        raise ConfigError(
            "not a name for an experiment file",
            got=target.name,
            expected="letters, digits, '.', '_' and '-', then .toml",
            fix="such as my.toml",
        )
    text, name = source.read_text("utf-8"), f'name = "{target.stem}"'
    named = re.sub(r'^name = ".*"$', name, text, count=1, flags=re.MULTILINE)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(named, "utf-8")
    copyfile(SCHEMA, target.with_name(SCHEMA.name))
    console.print(f"{target} written; run it with: sdcore run {target}", soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors and other tools.

    Example: sdcore schema > experiment.schema.json
    """
    print(experiment_schema(), end="")


def note(file: dict[str, Any], settings: Experiment, root: Path, *, new: bool) -> None:
    """Note in the workspace from which file a run is started, and refuse a file that has changed.

    A run is the name in its file and all of its settings, so other settings on the command line
    make another run. In a file they may be a mistake: the last run of that name was started from
    other ones. A command that continues a run of the workspace is never refused.

    Args:
        file: settings of the file, without those of the command line.
        settings: of the run.
        root: the workspace.
        new: start a new run even so.

    Raises:
        ConfigError: the file differs from the one that the last run of its name was started from.
    """
    from flows.servers.standing import require_workspace

    require_workspace(root)
    path = root / "files" / f"{settings.name}.json"
    noted = {
        name: value
        for name, value in file.items()
        if name not in ("description", "diagnose", "design")
    }
    if path.exists() and not new:
        run, last = _noted(path)
        changes = drift(last, noted)
        continues = _is_stored(root, settings.experiment_id)
        if changes and not continues and _is_stored(root, run):
            fixes = [
                f"`--extend` adds {each.lacks} to {each.run.experiment_id}"
                for each in islice(joined(settings, root), 1)
            ]
            fixes += [
                "`--new` starts a new run from the changed file",
                f"`sdcore resume {run}` continues the last one",
            ]
            raise ConfigError(
                f"the experiment file has changed since its last run, {run}",
                got="; ".join(changes),
                where=str(root),
                fix=", ".join(fixes),
            )
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"run": settings.experiment_id, "file": noted}), "utf-8")
    part.replace(path)


def _noted(path: Path) -> tuple[str, dict[str, Any]]:
    """The last run of an experiment's name, and the settings of the file that it was started from.

    Raises:
        ConfigError: the note is damaged.
    """
    try:
        noted = json.loads(path.read_text("utf-8"))
        run, file = noted["run"], noted["file"]
        damage = None if isinstance(run, str) and isinstance(file, dict) else "another form"
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        damage = f"{type(error).__name__}: {error}"
    if damage is not None:
        raise ConfigError(
            "the note of the file that the last run was started from cannot be read",
            got=damage,
            where=str(path),
            fix="`--new` writes it again: a run of other settings is a new run",
        )
    return run, file


def _is_stored(root: Path, run: str) -> bool:
    return (root / "sdcore.duckdb").exists() and newest_run(open_store(root), run) is not None
