"""Weightings: which tokens a condition learns from, and how much; the setting `tokens`.

The implementations are in `sdcore.training.weightings` and are imported when training starts, so
that reading settings loads no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from sdcore.config.base import NAMES_CODE, Settings, by_name
from sdcore.errors import ConfigError
from sdcore.registry import Entry, Registry, about

NEEDS = ("regions", "advantages", "divergences")
"""Inputs that a weighting can ask for, beyond the number of tokens and the grade."""


class WeightingSettings(Settings):
    """Settings of a weighting without any. The settings of other weightings derive from this."""

    kind: str


class RegionWeights(WeightingSettings):
    """A weight for each region of a wrong rollout; correct rollouts keep all tokens."""

    kind: Literal["regions"] = Field("regions", json_schema_extra=NAMES_CODE)
    before: float = Field(1.0, ge=0, description="weight of tokens before the first wrong step")
    at: float = Field(
        1.0, ge=0, description="weight of tokens of the first wrong step, tags included"
    )
    after: float = Field(1.0, ge=0, description="weight of tokens of later steps")
    answer: float = Field(
        1.0, ge=0, description="weight of tokens of the answer and what follows it"
    )


class PositionWeights(WeightingSettings):
    """Weights that rise along the response from `floor` to 1 as a sigmoid (arXiv 2605.21606)."""

    kind: Literal["positions"] = Field(json_schema_extra=NAMES_CODE)
    floor: float = Field(0.25, ge=0, le=1, description="weight long before the centre")
    centre: float = Field(
        0.30, ge=0, le=1, description="part of the response after which half of the rise is done"
    )
    width: float = Field(0.10, gt=0, description="width of the rise, as a share of the response")


class AdvantageWeights(WeightingSettings):
    """Weights in proportion to |advantage|, up to a bound."""

    kind: Literal["advantages"] = Field(json_schema_extra=NAMES_CODE)
    bound: float = Field(1.0, gt=0, description="nats; a larger |advantage| counts as this")


class RelevanceWeights(WeightingSettings):
    """Only tokens whose distribution the context changes noticeably."""

    kind: Literal["relevance"] = Field(json_schema_extra=NAMES_CODE)
    threshold: float = Field(
        0.1, ge=0, description="nats; a token needs at least this KL, teacher to student"
    )


@dataclass(frozen=True)
class WeightingEntry(Entry):
    """A registered weighting.

    Attributes:
        needs: which of `NEEDS` it looks at.
        settings: model of the table `tokens`; its fields but `kind` are arguments by name.
        implementation: from a `sdcore.training.weightings.ResponseTokens` and those arguments to
            weights [T], or its import path.
    """

    needs: frozenset[str]
    settings: type[WeightingSettings]
    implementation: Callable[..., Any] | str

    @property
    def needs_teacher(self) -> bool:
        """Return whether it looks at what the teacher says of the tokens."""
        return bool(self.needs & {"advantages", "divergences"})


_HERE = "sdcore.training.weightings"

WEIGHTINGS = Registry(
    "weighting",
    WeightingEntry,
    (
        WeightingEntry(
            "all", frozenset(), WeightingSettings, f"{_HERE}:all_alike",
            about="Every token counts the same.",
        ),
        WeightingEntry(
            "until_error", frozenset({"regions"}), WeightingSettings, f"{_HERE}:until_error",
            about="Wrong rollouts up to the end of their first wrong step; correct ones whole.",
        ),
        WeightingEntry(
            "error", frozenset({"regions"}), WeightingSettings, f"{_HERE}:error",
            about="Of wrong rollouts the first wrong step alone; correct ones whole.",
        ),
        WeightingEntry(
            "regions", frozenset({"regions"}), RegionWeights, f"{_HERE}:by_region",
            about=about(RegionWeights),
        ),
        WeightingEntry(
            "positions", frozenset(), PositionWeights, f"{_HERE}:by_position",
            about=about(PositionWeights),
        ),
        WeightingEntry(
            "advantages", frozenset({"advantages"}), AdvantageWeights, f"{_HERE}:by_advantage",
            about=about(AdvantageWeights),
        ),
        WeightingEntry(
            "relevance", frozenset({"divergences"}), RelevanceWeights, f"{_HERE}:by_relevance",
            about=about(RelevanceWeights),
        ),
    ),
)  # fmt: skip
"""The weightings that `conditions.<name>.tokens` can name."""


def weighting(
    *needs: str, settings: type[WeightingSettings] = WeightingSettings
) -> Callable[[Callable[..., Any]], WeightingEntry]:
    """Make a function a weighting, with what it needs to know of the response tokens.

    It maps a `sdcore.training.weightings.ResponseTokens` to weights [T], none below 0. With a
    settings model, the function gets its fields as arguments by name. An experiment file refers to
    it as `tokens = "my_module:my_weighting"` or, with settings, as a table
    `tokens = { kind = "my_module:my_weighting", … }`.

    Raises:
        ConfigError: a need is none of `NEEDS`, or the settings do not derive from
            `WeightingSettings`.
    """
    if others := set(needs) - set(NEEDS):
        raise ConfigError(
            "a weighting cannot need this",
            got=", ".join(sorted(map(str, others))),
            expected=f"any of {', '.join(NEEDS)}",
            where=f"@weighting({', '.join(map(repr, needs))})",
        )
    if not (isinstance(settings, type) and issubclass(settings, WeightingSettings)):
        raise ConfigError(
            "the settings of a weighting are of another kind",
            got=settings,
            expected="@weighting(settings=MySettings), a subclass of WeightingSettings",
        )

    def register(implementation: Callable[..., Any]) -> WeightingEntry:
        name = implementation.__name__
        return WeightingEntry(
            name, frozenset(needs), settings, implementation, about=about(implementation)
        )

    return register


_read = by_name(WeightingSettings, "kind", lambda name: WEIGHTINGS[name].settings)


def _of_any_form(given: object) -> object:
    """Read a name, weights by region, or the table of a weighting."""
    if isinstance(given, str):
        return _read({"kind": given})
    if isinstance(given, Mapping):
        return _read({"kind": "regions", **given})
    if isinstance(given, WeightingSettings):
        return given
    raise ValueError("a name, such as until_error, or a table, such as { after = 0 }, is needed")


Weighting = Annotated[
    SerializeAsAny[WeightingSettings],
    BeforeValidator(
        _of_any_form,
        json_schema_input_type=str
        | RegionWeights
        | PositionWeights
        | AdvantageWeights
        | RelevanceWeights,
    ),
]
"""The setting `tokens`."""
