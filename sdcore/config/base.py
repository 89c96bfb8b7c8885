"""Base of all sections: frozen, and an unknown key is an error."""

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Settings(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error rather than a no-op."""

    model_config = ConfigDict(frozen=True, extra="forbid")


FILE_ONLY: dict[str, JsonValue] = {"x-sdcore-set": "file"}
"""Marks a setting, as `json_schema_extra` of its field, that names a program, a server, a file of
code or of weights, or a variable of the environment: no form and no API may set it."""

NAMES_CODE: dict[str, JsonValue] = {"x-sdcore-set": "name"}
"""Marks a setting that may name code as `module:attribute`: a form or an API may set it to what is
built in or installed only."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


Address = Annotated[
    str, Field(pattern=r"^https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/[^?#\s]*)?$")
]
"""Of a server, without a user or a key in it: it is stored with the experiment."""

Count = Annotated[int, Field(ge=1)]


Share = Annotated[float, Field(ge=0, le=1)]


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
