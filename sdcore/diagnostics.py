"""Where a context's signal lies: token advantages against the first wrong step of each rollout.

All functions take token rows, the table `token_signals` with `correct` of the rollout beside it:
columns `by`, rollout_id, correct, region, advantage. `by` are the columns that tell groups apart,
such as condition and round. The tokens of a rollout depend on each other, so intervals are
percentile bootstraps over rollouts; they are not a number where a group has a single rollout.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from sdcore.config import EvaluationConfig

Array = NDArray[Any]
Row = dict[str, Any]

REGIONS = ("before", "at", "after")
OBJECTION = -0.1  # below this advantage the teacher objects to the token


def region_advantages(
    signals: pl.DataFrame, by: Sequence[str], settings: EvaluationConfig
) -> pl.DataFrame:
    """Mean advantage before, at and after the first wrong step, on wrong rollouts that have one.

    Columns: `by`, region, mean, low, high (nats a token), tokens, rollouts.
    """
    steps = _with_error(signals)
    rows = [
        group | {"region": region, "mean": mean, "low": low, "high": high} | _counts(tokens)
        for group, frame in _groups(steps, by)
        for region in REGIONS
        if len(tokens := frame.filter(region=region))
        for mean, low, high in [_mean(tokens, pl.col("advantage"), settings)]
    ]
    return pl.DataFrame(rows)


def correct_rollouts(
    signals: pl.DataFrame, by: Sequence[str], settings: EvaluationConfig
) -> pl.DataFrame:
    """What the context says where there is nothing to object to: on correct rollouts.

    Columns: `by`, mean, low, high (advantage, nats a token), negative, negative_low, negative_high
    (share of tokens with an advantage below OBJECTION: the diffusion), tokens, rollouts.
    """
    return pl.DataFrame(
        [
            group
            | dict(zip(("mean", "low", "high"), _mean(tokens, pl.col("advantage"), settings)))
            | dict(zip(("negative", "negative_low", "negative_high"), _mean(tokens, pl.col("advantage") < OBJECTION, settings)))
            | _counts(tokens)
            for group, tokens in _groups(signals.filter("correct"), by)
        ]
    )


def error_auc(signals: pl.DataFrame, by: Sequence[str], settings: EvaluationConfig) -> pl.DataFrame:
    """How well a low advantage finds the first wrong step, on wrong rollouts that have one.

    The chance that a token of that step has a lower advantage than a token of another step, over
    all pairs of such tokens, also of different rollouts; ties count half. 0.5 is no signal.

    Columns: `by`, auc, low, high, tokens, rollouts.
    """
    rows = [
        group | dict(zip(("auc", "low", "high"), _auc(tokens, settings))) | _counts(tokens)
        for group, tokens in _groups(_with_error(signals), by)
    ]
    return pl.DataFrame(rows)


def _with_error(signals: pl.DataFrame) -> pl.DataFrame:
    """Step tokens of wrong rollouts in which some step is the first wrong one."""
    steps = signals.filter(~pl.col("correct"), pl.col("region").is_in(REGIONS))
    erring = steps.filter(region="at").select("rollout_id").unique()
    return steps.join(erring, on="rollout_id", how="semi", maintain_order="left")
