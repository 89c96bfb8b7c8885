"""The experiment files that ship with sdcore, addressed by name."""

from pathlib import Path

from sdcore.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parents[2] / "deployments" / "experiments"
SCHEMA = FOLDER / "experiment.schema.json"


def experiment_file(experiment: str | Path) -> Path:
    """Return the file of an experiment: a shipped one by its name, any other by its path.

    A name has no folder and no suffix: ``quickstart`` is shipped, ``./quickstart`` and
    ``quickstart.toml`` are paths.

    Raises:
        ConfigError: no experiment of that name is shipped, or there is no file at that path.
    """
    path = Path(experiment)
    if str(experiment) == path.name and not path.suffix:
        return _shipped(path.name)
    if not path.is_file():
        raise ConfigError(
            "experiment file not found",
            got=path,
            fix=did_you_mean(path.stem, shipped_names())
            or f"give a path, or the name of a shipped experiment: {', '.join(shipped_names())}",
        )
    return path


def shipped_names() -> list[str]:
    """Return the names of the shipped experiments, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def _shipped(name: str) -> Path:
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(
            "no such experiment",
            got=name,
            expected=f"a path, or one of {', '.join(shipped_names())}",
            fix=did_you_mean(name, shipped_names())
            or f"write a file of this folder as ./{name} or with its suffix",
        )
    return path
