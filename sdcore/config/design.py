"""The search for feedback, `sdcore design`: its candidates, its schedule and its budget."""

from typing import Literal

from pydantic import Field

from sdcore.config.base import NAMES_CODE, Count, Settings
from sdcore.config.critic import Limits
from sdcore.config.weightings import Weighting, WeightingSettings


class DesignConfig(Settings):
    """The search `sdcore design`: which feedback is best, found before the long runs.

    The candidates are all combinations of contexts, tokens, divergences and the prompts in
    critic.prompts, and the file's own conditions that show the teacher a context. The preflight
    ranks them, short runs halve them, and the winner is confirmed against a condition of the file.
    """

    condition: str | None = Field(
        None,
        description="what the winner is confirmed against; absent: the last condition of the file "
        "that shows the teacher a context",
    )
    contexts: tuple[str, ...] = Field(
        (),
        description="absent: reference, step_aligned, full_quote, omission, and whatever the "
        "conditions and the section [contexts] name",
        json_schema_extra=NAMES_CODE,
    )
    tokens: tuple[Weighting, ...] = Field(
        tuple(WeightingSettings(kind=kind) for kind in ("all", "until_error", "error")),
        description="which tokens to learn from: each an entry as in conditions.NAME.tokens",
        json_schema_extra=NAMES_CODE,
    )
    divergences: tuple[Literal["forward_kl", "reverse_kl", "jsd", "policy_gradient"], ...] = Field(
        (), description="absent: the divergence that the conditions have"
    )
    rungs: int = Field(
        3, ge=1, le=8, description="short runs, at most; the last is as long as training.rounds"
    )
    eta: int = Field(
        2,
        ge=2,
        le=8,
        description="every rung trains eta times as long as the one before it and keeps one in eta "
        "of its candidates; the preflight lets eta^rungs of them in",
    )
    confirm_seeds: int = Field(
        4, ge=3, le=64, description="seeds of the confirmation, none of which the rungs have used"
    )
    max_tokens: Count | None = Field(
        None,
        description="sampled tokens of the whole search, which is made smaller until its upper "
        "bound fits; absent: that of the largest search",
    )
    max_cost: float | None = Field(
        None,
        ge=0,
        description="of the critic's answers in the whole search; absent: critic.max_budget alone",
    )
    max_critic_tokens: Count | None = Field(
        None,
        description="tokens that the critic reads and writes in the whole search, which stops "
        "before it exceeds them; absent: critic.max_total_tokens alone",
    )

    @property
    def critic_limits(self) -> Limits:
        """The most that may be spent on the critic in the whole search."""
        return Limits(self.max_cost, self.max_critic_tokens)
