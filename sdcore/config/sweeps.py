"""Sweeps: a list for a setting of a condition stands for one trial per value.

A trial is an ordinary condition with a name of its own. `Experiment.trials` says which condition of
the file it belongs to, its family, and which values it has. Which trial wins, and when a grid is
extended, is decided in `sdcore.analysis.trials`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from sdcore.config.base import FILE_ONLY, NAME_LENGTH, Name, Settings
from sdcore.config.objectives import OBJECTIVES
from sdcore.errors import ConfigError
from sdcore.store.schema import content_key

DIGITS = 12  # significant ones of a value that extends a grid: 3 * 0.0001 is 0.0003

_NOT_OF_TYPE = {"extra_forbidden", "too_short", "too_long"}
"""Errors that do not say that a setting takes no list."""

Path = tuple[str, ...]
"""Names that lead to a setting of a condition, such as ("teacher", "decay")."""


class SweepConfig(Settings):
    """The search over conditions with lists, such as `learning_rate = [2e-4, 4e-4]`.

    Each value is a trial with the same rounds, questions and seeds. The trial that is best on
    validation stands for its condition; it alone is scored on test and compared.
    """

    max_trials: int = Field(
        8,
        ge=1,
        description="trials per condition; up to this number, a grid is extended by its own factor "
        "while its best value is at the edge",
    )


class Trial(Settings):
    """Which condition of the file a trial belongs to, and its values."""

    family: Name = Field(
        description="the condition of the file that has the lists", json_schema_extra=FILE_ONLY
    )
    values: dict[str, JsonValue] = Field(
        description="values of the trial by setting, such as learning_rate",
        json_schema_extra=FILE_ONLY,
    )
    extension: int = Field(
        0,
        ge=0,
        description="0: the value is in the file; 1, 2 …: the grid was extended to it",
        json_schema_extra=FILE_ONLY,
    )


def expanded(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of an experiment with one condition per trial in place of each sweep.

    Raises:
        ConfigError: a list is empty or has a value twice, a condition has more trials than
            `sweep.max_trials`, or a trial's name is taken.
    """
    conditions, trials = settings.get("conditions"), settings.get("trials", {})
    if not isinstance(conditions, Mapping) or not isinstance(trials, Mapping):
        return settings
    made: dict[str, Any] = {}
    for name, condition in conditions.items():
        lists = _swept(name, condition) if isinstance(condition, Mapping) else {}
        grid = _grid(str(name), lists, _maximum(settings)) if lists else {}
        if taken := grid.keys() & (conditions.keys() | made.keys()):
            raise ConfigError(
                "a trial has the name of a condition",
                got=", ".join(sorted(taken)),
                where=f"conditions.{name}",
                fix="rename the condition",
            )
        trials = {**trials, **grid}
        made |= {each: assigned(condition, trial["values"]) for each, trial in grid.items()}
        if not grid:
            made[name] = condition
    return {**settings, "conditions": made, "trials": trials} if trials else settings


def assigned(condition: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a condition with other values, by dotted setting."""
    changed = dict(condition)
    for setting, value in values.items():
        changed = _assign(changed, setting.split("."), value)
    return changed


def trial_name(family: str, values: Mapping[str, Any]) -> str:
    """Return the name of a trial, such as `grpo-learning_rate-0.0004`.

    It is a name that files, shells and MLflow take as it is. What does not fit is cut off and has a
    hash at its end.
    """
    parts = [f"{setting.rpartition('.')[2]}-{_written(value)}" for setting, value in values.items()]
    wanted = "-".join([family, *parts])
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", wanted)
    if name == wanted and len(name) <= NAME_LENGTH:
        return name
    return f"{name[: NAME_LENGTH - 9]}-{content_key(family, dict(values))[:8]}"


def is_scale(values: Sequence[object]) -> bool:
    """Return whether the values of a setting are numbers, so that they have an order."""
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)


def next_value(values: Sequence[float], *, up: bool) -> float | None:
    """Return the value after the largest, or before the smallest, by the factor at that edge.

    None where there is no such value: one value has no factor, zero has no smaller multiple, and
    whole numbers stay whole.
    """
    ordered = sorted(set(values), reverse=not up)
    if len(ordered) < 2 or ordered[-2] == 0:
        return None
    edge, value = ordered[-1], ordered[-1] * (ordered[-1] / ordered[-2])
    if all(isinstance(each, int) for each in values):
        if abs(value - round(value)) > 1e-9:
            return None
        value = round(value)
    else:
        value = float(f"{value:.{DIGITS}g}")
    beyond = value > edge if up else value < edge
    return value if beyond else None


def with_lists(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of experiments, with lists allowed for the settings of conditions."""
    definitions = dict(schema["$defs"])
    for name in _referred(schema["properties"]["conditions"], definitions):
        about = definitions[name]
        fields = {key: _or_list(field) for key, field in about.get("properties", {}).items()}
        definitions[name] = {**about, "properties": fields} if fields else about
    return {**schema, "$defs": definitions}


def _or_list(field: Mapping[str, Any]) -> Mapping[str, Any]:
    if "const" in field:  # it says which form a section has
        return field
    about = {key: field[key] for key in ("default", "description", "title") if key in field}
    value = {key: each for key, each in field.items() if key not in about}
    return {**about, "anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}


def _referred(node: object, definitions: Mapping[str, Any]) -> set[str]:
    """Names of the definitions that a part of a schema refers to, in turn."""
    if isinstance(node, list):
        return set().union(*(_referred(each, definitions) for each in node))
    if not isinstance(node, Mapping):
        return set()
    found = _referred([each for each in node.values() if not isinstance(each, str)], definitions)
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        found |= {name} | _referred(definitions[name], definitions)
    return found


def _swept(name: object, condition: Mapping[str, Any]) -> dict[Path, list[Any]]:
    """Return the lists of a condition that stand for trials: its setting takes no list itself.

    Raises:
        ConfigError: the objective is a list.
    """
    lists = dict(_lists(condition))
    if not lists:
        return {}
    if ("objective",) in lists:
        raise ConfigError(
            "the objective of a condition cannot be a list",
            got=condition["objective"],
            where=f"conditions.{name}.objective",
            fix="give each objective a condition of its own: their settings differ",
        )
    refused = _refused(condition)
    return {
        path: values
        for path, values in lists.items()
        if path[-1] == "kind" or any(_is_about(place, path) for place in refused)
    }


def _refused(condition: Mapping[str, Any]) -> list[tuple[int | str, ...]]:
    """Places where a condition has a value of the wrong type; none if its objective is unknown."""
    objective = condition.get("objective")
    try:
        if isinstance(objective, str):
            OBJECTIVES[objective].settings.model_validate(condition)
    except ValidationError as error:
        return [item["loc"] for item in error.errors() if item["type"] not in _NOT_OF_TYPE]
    except ConfigError:
        pass  # validation of the experiment says so
    return []


def _is_about(place: tuple[int | str, ...], path: Path) -> bool:
    """Return whether an error is about the list at a path, not about one of its elements.

    What follows the path names the form of a union: ("beta", "float").
    """
    rest = place[len(path) :]
    return place[: len(path)] == path and not any(isinstance(part, int) for part in rest)


def _lists(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, list[Any]]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _lists(value, (*path, str(name)))
        elif isinstance(value, list | tuple):
            yield (*path, str(name)), list(value)


def _maximum(settings: Mapping[str, Any]) -> int:
    """The setting `sweep.max_trials`; its default where it is absent or not a number."""
    sweep = settings.get("sweep")
    given = sweep.get("max_trials") if isinstance(sweep, Mapping) else None
    return given if isinstance(given, int) else SweepConfig().max_trials


def _grid(family: str, lists: Mapping[Path, list[Any]], maximum: int) -> dict[str, dict[str, Any]]:
    """Family and values of each trial, by its name."""
    count = prod(len(values) for values in lists.values())
    if count > maximum:
        raise ConfigError(
            "a condition has too many trials",
            got=count,
            expected=f"at most sweep.max_trials = {maximum}",
            where=f"conditions.{family}",
            fix="shorten its lists, or raise sweep.max_trials",
        )
    for path, values in lists.items():
        if not values or any(value in values[:index] for index, value in enumerate(values)):
            raise ConfigError(
                "a list of values to try is empty or has a value twice",
                got=values,
                where=".".join(("conditions", family, *path)),
                fix="list each value once",
            )
    settings = [".".join(path) for path in lists]
    combinations = [dict(zip(settings, values, strict=True)) for values in product(*lists.values())]
    trials = {
        trial_name(family, values): {"family": family, "values": values} for values in combinations
    }
    if len(trials) < len(combinations):
        raise ConfigError(
            "two trials have the same name",
            got=", ".join(trials),
            expected=f"{len(combinations)} names",
            where=f"conditions.{family}",
            fix="write the values in one way: 1 and '1' look alike",
        )
    return trials


def _assign(tree: Mapping[str, Any], path: Sequence[str], value: object) -> dict[str, Any]:
    name, *rest = path
    return {**tree, name: _assign(tree.get(name, {}), rest, value) if rest else value}


def _written(value: object) -> str:
    if isinstance(value, Mapping):  # {after = 0, answer = 0} is after_0_answer_0
        return "_".join(f"{name}_{_written(each)}" for name, each in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
