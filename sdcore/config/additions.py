"""Conditions and seeds that a run has gained since it was started; they keep its id."""

from pydantic import Field

from sdcore.config.base import FILE_ONLY, Name, Seed, Settings


class Additions(Settings):
    """Names of what was added to a run after its start; left out of the run's fingerprint.

    Nothing that was there before depends on it: conditions and seeds train independently.
    """

    conditions: tuple[Name, ...] = Field(
        (), description="conditions that were added", json_schema_extra=FILE_ONLY
    )
    seeds: tuple[Seed, ...] = Field(
        (), description="seeds that were added", json_schema_extra=FILE_ONLY
    )
    contexts: tuple[Name, ...] = Field(
        (), description="contexts that the added conditions show", json_schema_extra=FILE_ONLY
    )
    plugins: tuple[str, ...] = Field(
        (), description="code that the added conditions name", json_schema_extra=FILE_ONLY
    )

    @property
    def words(self) -> str:
        """The conditions and seeds, such as "until_error, seed 3"; empty if there are none."""
        return ", ".join([*self.conditions, *(f"seed {seed}" for seed in self.seeds)])
