"""Experiment files, dotted overrides, and what differs between two runs."""

import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sdcore.config.experiment import Experiment
from sdcore.errors import ConfigError
from sdcore.registry import importable


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply dotted ``key=value`` overrides (values are TOML).

    Raises:
        ConfigError: file missing, not TOML, or a setting that does not validate.
    """
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            "experiment file not found", got=path, fix="see deployments/experiments/"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("experiment file is not TOML", got=error, where=str(path)) from error
    for override in overrides:
        _apply(tree, override)
    try:
        with importable(path.parent.absolute()):
            experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, path) from error
    if experiment.plugins and experiment.modules is None:
        return experiment.model_copy(update={"modules": path.parent.absolute()})
    return experiment


def drift(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two trees of settings, each as `section.key was X, is Y`."""
    old, new = _flat(before), _flat(now)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, leaf = _path(key if equals else "", override)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or path needs no quotes on the command line
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(
                "override goes through a value", got=override, expected=f"{parent} to be a section"
            )
    node[leaf] = value


def _path(key: str, override: str) -> list[str]:
    """The names in a dotted key, which is TOML's: one with a dot in it stands in quotes."""
    names = list[str]()
    with suppress(tomllib.TOMLDecodeError):
        tree: Any = tomllib.loads(f"{key} = 0")
        while tree:
            ((name, tree),) = tree.items()
            names.append(name)
    if not names:
        raise ConfigError(
            "not an override",
            got=override,
            expected="section.key=value",
            fix="such as training.rounds=3; a name with a dot in quotes: conditions.'a.b'.top_k=9",
        )
    return names


def _explained(error: ValidationError, path: Path) -> ConfigError:
    lines = [
        f"{'.'.join(map(str, item['loc'])) or 'experiment'}: {item['msg']} "
        f"(got {item['input']!r:.80})"
        for item in error.errors()
    ]
    return ConfigError(
        "experiment file has settings that do not validate",
        got="; ".join(lines),
        where=str(path),
        fix="`sdcore run FILE --dry-run` prints the resolved settings of a valid file",
    )
