"""Base of all sections: frozen, and an unknown key is an error."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue


class Settings(BaseModel):
    """Base of all sections: immutable, an unknown key is an error, and numbers are finite.

    JSON, in which the tables keep the settings of a run, has no infinity and no NaN.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


FILE_ONLY: dict[str, JsonValue] = {"x-sdcore-set": "file"}
"""Marks a setting, as `json_schema_extra` of its field, that names a program, a server, a file of
code or of weights, or a variable of the environment: no form and no API may set it."""

NAMES_CODE: dict[str, JsonValue] = {"x-sdcore-set": "name"}
"""Marks a setting that may name code as `module:attribute`: a form or an API may set it to what is
built in or installed only."""

NAME_LENGTH = 64  # characters in the name of an experiment or a condition, at most
Name = Annotated[str, Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.-]{{0,{NAME_LENGTH - 1}}}$")]


def _reachable(address: str) -> str:
    _ = urlsplit(address).port  # raises ValueError for a port above 65535
    return address


Address = Annotated[
    str,
    Field(pattern=r"^https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/[^?#\s]*)?$"),
    AfterValidator(_reachable),
]
"""Of a server, without a user or a key in it: it is stored with the experiment."""


def _storable(number: int) -> int:
    if number >= 2**63:
        raise ValueError("Input should be less than 2**63: a column holds no more")
    return number


Count = Annotated[int, Field(ge=1), AfterValidator(_storable)]


Seed = Annotated[int, Field(ge=0), AfterValidator(_storable)]
"""Of random numbers: NumPy refuses negative seeds."""


Share = Annotated[float, Field(ge=0, le=1)]


def _require_finite(value: object, path: str = "") -> object:
    """Refuse a tree of settings with a number in it that is not finite, wherever it is."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path.removeprefix('.') or 'the value'} should be a finite number")
    branches = value.items() if isinstance(value, Mapping) else ()
    elements = enumerate(value) if isinstance(value, list | tuple) else ()
    for name, branch in (*branches, *elements):
        _require_finite(branch, f"{path}.{name}")
    return value


Options = Annotated[dict[str, Any], AfterValidator(_require_finite)]
"""Settings that somebody else validates: any tree of finite values."""


def by_name(
    base: type[Settings], key: str, models: Callable[[str], type[Settings]]
) -> Callable[[object], object]:
    """Return a validator that reads a section with the settings model of what it names.

    Args:
        base: class of all such sections.
        key: the setting that holds the name, such as `objective`.
        models: the settings model of a name.
    """

    def read(section: object) -> object:
        if isinstance(section, base) or not isinstance(section, Mapping):
            return section
        if not isinstance(section.get(key), str):
            raise ValueError(f"a setting {key!r} is needed here")
        return models(section[key]).model_validate(section)

    return read
