"""Signs of a collapse in training, and whether they end it early."""

from typing import Literal

from pydantic import Field

from sdcore.config.base import Settings, Share

Sign = Literal["entropy", "length", "format", "first_token_kl", "drift"]


class HealthConfig(Settings):
    """Signs of a collapse, from each round's rollouts and compared with those of the first round.

    The quickstart in 20 rounds keeps 0.7 to 1.2 times its entropy, its length to 2 % and its
    format rate to 2 points: the thresholds are far outside the range of a healthy run.
    """

    min_entropy: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share of the first round's entropy; below it the policy repeats itself",
    )
    max_entropy: float = Field(
        3.0, ge=1, description="times the first round's entropy; above it the policy rambles"
    )
    max_length_ratio: float = Field(
        2.0, gt=1, description="factor by which the mean length may grow or shrink"
    )
    max_format_loss: Share = Field(
        0.2, description="loss in the share of well-formed rollouts that is allowed"
    )
    max_first_token_kl: float = Field(
        2.0,
        gt=0,
        description="nats, mean KL to the teacher at the first response token; seen: below 0.5 in "
        "healthy runs, 4.4 where the teacher expects a response that begins differently",
    )
    max_drift: float = Field(
        1.0,
        gt=0,
        description="nats per token, KL from the base, measured on the base's own validation "
        "rollouts; at 1 each of their tokens is on average e times less likely",
    )
    patience: int = Field(
        2, ge=1, description="rounds in a row beyond a threshold before it counts"
    )
    stop_when: tuple[Sign, ...] = Field(
        (),
        description="signs that end a condition and seed early, at the last policy that showed "
        "none of them; checkpoints are then written every round. The default only warns",
    )
