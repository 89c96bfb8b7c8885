"""Does the preflight predict the training? Rank correlations of its measures with the gains.

A condition has the preflight's measures of its context, the same for all of its token masks, and
those of its mask; its gain is the difference to the base on the test split. The correlation is
Spearman's. Conditions with one context depend on each other, so intervals are percentile bootstraps
over contexts: a context that is drawn comes with all of its masks. They cover other contexts, for
this model, these problems and these seeds.
"""

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from sdcore.analysis.intervals import Array, bootstrap
from sdcore.config import EvaluationConfig

CONTEXTS_ONLY = "contexts, for this model, these problems and these seeds"
EVERY = "every mask"

MEASURES: Mapping[str, tuple[str, str]] = {
    "gain": ("+", "accuracy with the context in the prompt minus accuracy without"),
    "helped": ("+", "accuracy with the contexts of wrong rollouts"),
    "error_auc": ("+", "AUC of −advantage as a detector of the error"),
    "auc": ("+", "AUC of −advantage as a detector of the first wrong step"),
    "error": ("−", "mean advantage of the error, nats"),
    "before": ("+", "mean advantage before the first wrong step, nats per token"),
    "negative_share": ("−", "diffusion: objections to tokens of correct rollouts"),
    "copied": ("−", "copy rate: share of errors that the context makes likelier"),
    "repairs": ("−", "share of continuations after the error that repair it"),
    "after_error": ("−", "share of the weighted loss that lies after the first wrong step"),
    "score": ("+", "the score by which `sdcore design` ranks"),
}
"""Measures of the preflight: the sign that their correlation should have, and what they are."""


def correlations(conditions: pl.DataFrame, settings: EvaluationConfig) -> pl.DataFrame:
    """Correlate each measure with the training gain, over all conditions and within each mask.

    A measure that some conditions lack is correlated over the others. With fewer than three
    conditions, or where all are alike, the correlation is NaN; with fewer contexts than
    `intervals.FEWEST` its bounds are.

    Args:
        conditions: one row per condition: context, tokens (the mask's name), training_gain, and a
            column for each measure that there is.
        settings: of the intervals.

    Returns:
        Columns measure, expected (sign), among (a mask, or every one), rho, low, high, conditions,
        contexts.
    """
    masks = conditions["tokens"].unique(maintain_order=True).to_list()
    groups = {EVERY: conditions} if len(masks) > 1 else {}
    groups |= {mask: conditions.filter(tokens=mask) for mask in masks}
    rows = []
    for measure, (expected, _) in MEASURES.items():
        if measure not in conditions.columns:
            continue
        for among, group in groups.items():
            known = group.filter(pl.col(measure).is_finite(), pl.col("training_gain").is_finite())
            rho, low, high = _correlation(known, measure, settings)
            rows.append(
                {"measure": measure, "expected": expected, "among": among}
                | {"rho": rho, "low": low, "high": high}
                | {"conditions": len(known), "contexts": known["context"].n_unique()}
            )
    return pl.DataFrame(rows)


def by_verdict(conditions: pl.DataFrame) -> pl.DataFrame:
    """Summarise the training gains of the conditions under each verdict.

    Returns:
        Columns verdict, conditions, mean, smallest, largest; the largest mean first.
    """
    gain = pl.col("training_gain")
    return (
        conditions.group_by("verdict")
        .agg(conditions=pl.len(), mean=gain.mean(), smallest=gain.min(), largest=gain.max())
        .sort("mean", "verdict", descending=[True, False])
    )


def harm_thresholds(conditions: pl.DataFrame) -> pl.DataFrame:
    """Find the value of each measure that divides contexts that do harm from the others.

    A context does harm where the whole interval of a gain is below 0 under one of its masks. Of the
    cuts between two contexts the one with the fewest errors is taken, of those the widest. The same
    is done without each context in turn, which is then judged by a cut that it had no part in.

    Args:
        conditions: as for `correlations`, with the bound `high` of the gain.

    Returns:
        Columns measure, harm (below or above the cut), start and end (the cut is anywhere between
        the two), contexts, harmful, errors (on the same contexts), errors_left_out. Measures that
        a context lacks or that depend on the mask, and contexts of one kind, have no row.
    """
    rows = []
    for measure, (expected, _) in MEASURES.items():
        if measure not in conditions.columns or conditions[measure].null_count():
            continue
        by_context = conditions.group_by("context", maintain_order=True).agg(
            pl.col(measure).first(), kinds=pl.n_unique(measure), harm=(pl.col("high") < 0).any()
        )
        if (by_context["kinds"] > 1).any():  # it depends on the mask
            continue
        harm_N = by_context["harm"].to_numpy()
        sign = 1.0 if expected == "+" else -1.0
        value_N = sign * by_context[measure].to_numpy().astype(np.float64)
        if len(np.unique(value_N)) < 3 or min(harm_N.sum(), (~harm_N).sum()) < 2:
            continue  # without one of them there would be a single kind
        low, high = _cut(value_N, harm_N)
        left_out = 0
        for place in range(len(value_N)):
            rest = np.arange(len(value_N)) != place
            judged = value_N[place] < np.mean(_cut(value_N[rest], harm_N[rest]))
            left_out += int(judged != harm_N[place])
        start, end = sorted((sign * low, sign * high))
        rows.append(
            {
                "measure": measure,
                "harm": "below" if sign > 0 else "above",
                "start": start,
                "end": end,
                "contexts": len(value_N),
                "harmful": int(harm_N.sum()),
                "errors": _errors(value_N, harm_N, low, high),
                "errors_left_out": left_out,
            }
        )
    return pl.DataFrame(rows, schema=_THRESHOLDS)


_THRESHOLDS = {
    "measure": pl.String(), "harm": pl.String(), "start": pl.Float64(), "end": pl.Float64(),
    "contexts": pl.Int64(), "harmful": pl.Int64(), "errors": pl.Int64(),
    "errors_left_out": pl.Int64(),
}  # fmt: skip


def _cut(value_N: Array, harm_N: Array) -> tuple[float, float]:
    """Neighbouring values between which to cut: fewest errors, then the widest gap."""
    values = np.unique(value_N)
    return min(
        zip(values[:-1].tolist(), values[1:].tolist(), strict=True),
        key=lambda cut: (_errors(value_N, harm_N, *cut), cut[0] - cut[1]),
    )


def _errors(value_N: Array, harm_N: Array, low: float, high: float) -> int:
    return int(((value_N < (low + high) / 2) != harm_N).sum())


def rank_correlation(x_N: Array, y_N: Array) -> Callable[[Array], Array]:
    """Spearman's correlation as a function of how often each of N pairs is drawn.

    That is Pearson's correlation of the ranks, ties sharing the mean of theirs, as if each pair
    stood there as often as it was drawn.

    Returns:
        A function from draws [R, N] to correlations [R, 1]; NaN where a side has a single value.
    """

    def correlate(n_RN: Array) -> Array:
        size_R1 = n_RN.sum(axis=1, keepdims=True)
        x_RN, y_RN = (_deviations(values, n_RN, size_R1) for values in (x_N, y_N))
        products = ((n_RN * one * other).sum(axis=1) for one, other in
                    ((x_RN, y_RN), (x_RN, x_RN), (y_RN, y_RN)))  # fmt: skip
        both_R, x_R, y_R = products
        scale_R = np.sqrt(x_R * y_R)
        return np.asarray(both_R / np.where(scale_R > 1e-9, scale_R, np.nan))[:, None]

    return correlate


def _deviations(values_N: Array, n_RN: Array, size_R1: Array) -> Array:
    """Ranks minus their mean: [R, N]."""
    below_NN = (values_N[None, :] < values_N[:, None]) + (
        values_N[None, :] == values_N[:, None]
    ) / 2
    rank_RN = n_RN @ below_NN.T
    return np.asarray(rank_RN - (n_RN * rank_RN).sum(axis=1, keepdims=True) / size_R1)


def _correlation(
    known: pl.DataFrame, measure: str, settings: EvaluationConfig
) -> tuple[float, float, float]:
    x_N, y_N = (known[name].to_numpy().astype(np.float64) for name in (measure, "training_gain"))
    if len(known) < 3 or len(np.unique(x_N)) < 2 or len(np.unique(y_N)) < 2:
        return np.nan, np.nan, np.nan
    context_N = known["context"].rank("dense").to_numpy() - 1
    correlate = rank_correlation(x_N, y_N)
    ((value, low, high),) = bootstrap(
        lambda n_RC: correlate(n_RC[:, context_N]),
        [int(context_N.max()) + 1],
        settings.confidence,
        settings.resamples,
    )
    return float(value), float(low), float(high)
