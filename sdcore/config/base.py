"""What all sections share: frozen, and an unknown key is an error."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error rather than a no-op."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


Count = Annotated[int, Field(ge=1)]


Share = Annotated[float, Field(ge=0, le=1)]
