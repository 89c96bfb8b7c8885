"""Experiment files, dotted overrides, and the differences between two runs."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sdcore.config.experiment import Experiment
from sdcore.config.sections import NAME, sections, suggestion
from sdcore.config.shipped import experiment_file
from sdcore.config.sweeps import expanded
from sdcore.errors import ConfigError, did_you_mean
from sdcore.registry import importable

_SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte that is no UTF-8
DEEPEST = 20  # names in a dotted key; no setting has half as many


def load_experiment(
    experiment: str | Path, overrides: Sequence[str] = (), *, trusted: bool = True
) -> Experiment:
    """Read an experiment file and apply dotted ``key=value`` overrides, whose values are TOML.

    Args:
        experiment: path of a file, or the name of a shipped experiment.
        overrides: such as ``training.rounds=3``.
        trusted: they come from the command line or a script, not from a form or an API.

    Raises:
        ConfigError: the file is missing or not TOML, a setting does not validate, or an override
            that is not trusted sets what only a file may set.
    """
    path = experiment_file(experiment)
    tree = read_settings(path)
    if not trusted:
        _require_harmless(overrides)
    for override in overrides:
        _apply(tree, override)
    if oddity := _oddity(tree):
        raise _invalid(oddity, path)
    try:
        with importable(path.parent.absolute()):
            settings = Experiment.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, _with_trials(tree, path.parent), path) from error
    if settings.plugins and settings.modules is None:
        return settings.model_copy(update={"modules": path.parent.absolute()})
    return settings


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of an experiment file as they are written, without validating them.

    Raises:
        ConfigError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError("experiment file cannot be read", got=error, where=str(path)) from error
    except (ValueError, RecursionError) as error:  # tomllib's own errors are ValueErrors
        raise ConfigError("experiment file is not TOML", got=error, where=str(path)) from error


def as_toml(settings: Mapping[str, Any]) -> str:
    """Return nested settings as TOML that `load_experiment` reads back; None is left out.

    TOML has no word for None, which is the default of every setting that may be None.
    """
    return tomli_w.dumps(_without_none(settings))


def _without_none(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _without_none(value) for name, value in tree.items() if value is not None}
    return [_without_none(each) for each in tree] if isinstance(tree, list) else tree


def drift(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of two trees of settings, each as `section.key was X, is Y`."""
    old, new = _flat(before), _flat(now)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _require_harmless(overrides: Sequence[str]) -> None:
    """Refuse overrides with which a stranger could run programs, send keys or reach servers.

    It is decided before anything is imported that they name. Allowed is a setting of sdcore's own
    that is not marked; neither a whole section nor a setting of somebody's own code is.
    """
    schema = Experiment.model_json_schema()
    known = {
        (*section.path, setting.name): setting.set_by
        for section in sections(schema)
        for setting in section.settings
    }
    sectioned = {place[:end] for place in known for end in range(1, len(place))} & known.keys()
    for override in overrides:
        names, value = _parsed(override)
        marks = {
            mark
            for place, mark in known.items()
            if _is_within(names, place) and (len(names) == len(place) or place not in sectioned)
        }
        values = value if isinstance(value, list) else [value]
        tables = any(isinstance(each, dict) for each in values)
        if tables and any(_is_within(names, place) for place in sectioned):
            marks = set()  # a whole section, such as tokens = { kind = "module:attribute" }
        named = "name" in marks and any(
            isinstance(each, dict) or (isinstance(each, str) and ":" in each) for each in values
        )
        if not marks or "file" in marks or named:
            raise ConfigError(
                "a form or the API cannot set this",
                got=override,
                expected="a setting of sdcore's own that names no program, server, file of code or "
                "weights, or variable",
                where=".".join(names),
                fix=(suggestion(schema, names) if not marks else "")
                or "write it into an experiment file (`sdcore init` copies a shipped one) and give "
                "the form that file's path",
            )


def _is_within(names: Sequence[str], place: Sequence[str]) -> bool:
    """Return whether a path is of a setting, or of an entry of it where it is a table."""
    pairs = zip(names, place, strict=False)
    return len(names) >= len(place) and all(own in (NAME, name) for name, own in pairs)


def _parsed(override: str) -> tuple[list[str], Any]:
    """The names in an override's key, and its value."""
    key, equals, text = override.partition("=")
    names = _path(key if equals else "", override)
    try:
        return names, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return names, text  # a bare word or path needs no quotes on the command line
    except (ValueError, RecursionError) as error:  # 5,000 digits, 5,000 brackets
        raise ConfigError("not an override", got=error, where=override) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    (*parents, leaf), value = _parsed(override)
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
    try:
        tree: Any = tomllib.loads(f"{key} = 0")
        while tree:
            ((name, tree),) = tree.items()
            names.append(name)
    except (ValueError, RecursionError):  # no TOML, or several keys
        names.clear()
    if not 0 < len(names) <= DEEPEST:
        raise ConfigError(
            "not an override",
            got=override,
            expected="section.key=value",
            fix="such as training.rounds=3; a name with a dot in quotes: conditions.'a.b'.top_k=9",
        )
    return names


def _oddity(node: object, names: Sequence[str] = ()) -> str | None:
    """Return why a value can be no setting; None if it can.

    TOML's whole numbers have 64 bits, but Python's parser takes any. A command line can have bytes
    that are no UTF-8, such as those of a path, and no table can store them.
    """
    if len(names) > DEEPEST:
        return f"{'.'.join(names)[:80]}…: nested more deeply than any setting"
    if isinstance(node, int) and node.bit_length() > 63:
        size = f"a whole number of {node.bit_length()} bits"
        return f"{'.'.join(names)}: {size}, should be less than 2**63"
    if any(map(_SURROGATE.search, [*names, node if isinstance(node, str) else ""])):
        return f"{'.'.join(names)}: not UTF-8"
    branches = node.items() if isinstance(node, Mapping) else ()
    elements = enumerate(node) if isinstance(node, list) else ()
    found = (_oddity(part, (*names, str(name))) for name, part in (*branches, *elements))
    return next(filter(None, found), None)


def _with_trials(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings in which errors are located: with a condition per trial."""
    try:
        with importable(folder.absolute()):
            return dict(expanded(tree))
    except ConfigError:
        return tree  # that is the error


def _explained(error: ValidationError, tree: dict[str, Any], path: Path) -> ConfigError:
    return _invalid("; ".join(_complaint(item, tree) for item in error.errors()), path)


def _invalid(complaints: str, path: Path) -> ConfigError:
    return ConfigError(
        "the experiment has settings that do not validate",
        got=complaints,
        where=str(path),
        fix="`sdcore run quickstart --dry-run` shows every setting with a value",
    )


def _complaint(item: ErrorDetails, tree: dict[str, Any]) -> str:
    names, said, hint = _names(item["loc"], tree), item["msg"], ""
    if item["type"] == "extra_forbidden":
        said, hint = "no such setting", suggestion(Experiment.model_json_schema(), names)
    elif names[:-1] == ["conditions"] and "objective" not in _mapping(item["input"]):
        hint = did_you_mean(names[-1], _node(tree, names[:-1]).keys() - {names[-1]})
    got = f" (got {item['input']!r:.80})"
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):
        got = ""  # of a whole section: the message names the settings that contradict each other
    said = ", ".join(filter(None, [said.removeprefix("Value error, "), hint]))
    return f"{'.'.join(names) or 'experiment'}: {said}{got}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(location: Sequence[int | str], tree: Any) -> list[str]:
    """Names of a setting's path, from where pydantic locates an error.

    pydantic also names the form of a union that it chose, which the file does not have:
    ``conditions.step.distill.context`` is ``conditions.step.context`` in the file.
    """
    names = list[str]()
    for place, name in enumerate(location, start=1):
        inside = isinstance(tree, dict) and name in tree
        if place == len(location) or inside or isinstance(name, int):
            names.append(str(name))
        if inside:
            tree = tree[name]
    return names


def _node(tree: Any, names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        tree = tree[name]
    return dict(tree)
