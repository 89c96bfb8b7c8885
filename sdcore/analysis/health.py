"""Signs of a collapse in stored rounds: which threshold was passed when, and where to stop.

All of it follows from the rows of the view `round_health`, so that a resumed run and a report come
to the same result as the run itself.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from sdcore.config import Experiment, HealthConfig
from sdcore.store.database import Store

COLUMNS = {
    "entropy": "entropy",
    "length": "mean_length",
    "format": "format_rate",
    "first_token_kl": "first_token_kl",
    "drift": "base_drift",
}
"""The column of `round_health` that shows each sign."""

_SAMPLED = ("length", "format")
"""Signs that the rollouts of a round show, and so the policy that sampled them."""

_WORDS = {
    "entropy": "entropy of {value:.3g} nats per token, {start:.3g} in the first round",
    "length": "{value:.4g} tokens per rollout, {start:.4g} in the first round",
    "format": "{value:.0%} of the rollouts well-formed, {start:.0%} in the first round",
    "first_token_kl": "KL of {value:.3g} nats at the first token",
    "drift": "{value:.3g} nats per token from the base",
}


@dataclass(frozen=True)
class Alarm:
    """A sign that was beyond its threshold for several rounds in a row.

    Attributes:
        sign: key of `COLUMNS`.
        first: round of the first value beyond.
        last: round of the last value beyond.
        counts: round at which the settings' patience was over.
        text: the value at `last`, in words.
    """

    sign: str
    first: int
    last: int
    counts: int
    text: str

    @property
    def rounds(self) -> str:
        """The rounds in words."""
        one = self.first == self.last
        return f"round {self.first}" if one else f"rounds {self.first} to {self.last}"


def alarms(rounds: pl.DataFrame, settings: HealthConfig) -> list[Alarm]:
    """Return all signs of a condition and seed, by the round at which they count.

    Args:
        rounds: its rows of `round_health`, in order.
        settings: the thresholds.
    """
    rows = rounds.to_dicts()
    if not rows:
        return []
    start = _start(rows)
    bounds = _bounds(start, settings)
    found = [
        alarm
        for sign in COLUMNS
        for alarm in _alarms(rows, sign, start[COLUMNS[sign]], *bounds[sign], settings.patience)
    ]
    return sorted(found, key=lambda alarm: alarm.counts)


def stopping(rounds: pl.DataFrame, settings: HealthConfig) -> Alarm | None:
    """Return the sign at which a condition and seed ends early; None where it goes on."""
    found = (each for each in alarms(rounds, settings) if each.sign in settings.stop_when)
    return next(found, None)


def last_good(rounds: pl.DataFrame, settings: HealthConfig, lag: int = 0) -> int:
    """Return the rounds behind the last policy without a sign of `stop_when`; 0 for the base.

    Args:
        rounds: rows of `round_health` of a condition and seed, in order.
        settings: the thresholds.
        lag: rounds by which the weights that sample are behind (`training.lag`): so many rounds
            later are a policy's rollouts, without which it is not known to be good.
    """
    rows = rounds.to_dicts()
    bounds = _bounds(_start(rows), settings)
    behind = {sign: lag if sign in _SAMPLED else 0 for sign in settings.stop_when}
    last = len(rows) - max(behind.values(), default=0)
    good = (
        int(rows[place]["round"])
        for place in reversed(range(last))
        if not any(_beyond(rows[place + behind[sign]], sign, *bounds[sign]) for sign in behind)
    )
    return next(good, 0)


def run_alarms(store: Store, experiment: Experiment) -> dict[tuple[str, int], list[Alarm]]:
    """Return the signs of each condition and seed that has trained."""
    sql = "FROM round_health WHERE experiment_id = ? ORDER BY condition, seed, round"
    rows = store.query(sql, [experiment.experiment_id])
    return {
        (str(condition), int(seed)): alarms(rounds, experiment.health)
        for (condition, seed), rounds in rows.group_by("condition", "seed", maintain_order=True)
    }


def _start(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The first known value of each column, NaN where there is none.

    A round without a step has no entropy, and leaves the policy to the next one as it was.
    """
    return {
        name: next((row[name] for row in rows if row[name] is not None), math.nan)
        for name in COLUMNS.values()
    }


def _bounds(start: Mapping[str, float], settings: HealthConfig) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each sign that is no alarm; NaN where unknown."""
    entropy, length, well_formed = start["entropy"], start["mean_length"], start["format_rate"]
    ratio = settings.max_length_ratio
    return {
        "entropy": (settings.min_entropy * entropy, settings.max_entropy * entropy),
        "length": (length / ratio, length * ratio),
        "format": (well_formed - settings.max_format_loss, math.inf),
        "first_token_kl": (-math.inf, settings.max_first_token_kl),
        "drift": (-math.inf, settings.max_drift),
    }


def _beyond(row: Mapping[str, Any], sign: str, low: float, high: float) -> bool:
    """Return whether a sign is beyond its threshold; an unknown value is not."""
    value = row[COLUMNS[sign]]
    return value is not None and (value < low or value > high)


def _alarms(
    rows: list[dict[str, Any]], sign: str, start: float, low: float, high: float, patience: int
) -> Iterator[Alarm]:
    streak: list[dict[str, Any]] = []
    for row in [*rows, None]:
        if row is not None and _beyond(row, sign, low, high):
            streak.append(row)
            continue
        if len(streak) >= patience:
            last = streak[-1][COLUMNS[sign]]
            yield Alarm(
                sign,
                streak[0]["round"],
                streak[-1]["round"],
                streak[patience - 1]["round"],
                _WORDS[sign].format(value=last, start=start),
            )
        streak = []
