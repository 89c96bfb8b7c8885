"""Scores of a critic, from its critiques of solutions whose first wrong step is known."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sdcore.analysis.intervals import FEWEST, Array, bootstrap, grid_mean
from sdcore.analysis.metrics import SHARE
from sdcore.config import EvaluationConfig

Vector = NDArray[np.float64]
Numbers = dict[str, float | int | None]


def critic_scores(trials: pl.DataFrame, settings: EvaluationConfig) -> Numbers:
    """Return scores as ProcessBench (arXiv 2412.06559) defines them, with intervals.

    `error_accuracy` is the share of wrong solutions whose first wrong step is named, and
    `correct_accuracy` the share of right ones in which no step is; `f1` is their harmonic mean.
    The critic's claim counts there even if its critique is invalid; an unreadable answer claims
    nothing and is a miss. `false_alarms` is the share of right solutions in which a step is called
    wrong, `validity` the share of critiques that may be trained on. Intervals cover other
    solutions; they are None where there is a single one.

    Args:
        trials: columns truth, verdict, claimed, valid, repaired, attempts, prompt_tokens, tokens
            and cost, one row per solution; truth and claimed are steps from 1, null for none.
        settings: confidence and resamples.
    """
    answered = pl.col("verdict").is_not_null()
    marked = trials.with_columns(
        hit=answered & pl.col("claimed").eq_missing(pl.col("truth")),
        alarm=answered & pl.col("claimed").is_not_null(),
    )
    wrong = marked.filter(pl.col("truth").is_not_null())
    right = marked.filter(pl.col("truth").is_null())
    shares = {
        "error_accuracy": wrong["hit"],
        "correct_accuracy": right["hit"],
        "false_alarms": right["alarm"],
        "validity": marked["valid"],
        "repaired": marked["repaired"].is_not_null(),
    }
    row: Numbers = {
        "wrong_solutions": len(wrong),
        "right_solutions": len(right),
    }
    row |= _with_interval("f1", _f1(_vector(wrong["hit"]), _vector(right["hit"]), settings))
    for name, values in shares.items():
        row |= _with_interval(name, _share(_vector(values), settings))
    for name in ("attempts", "prompt_tokens", "tokens", "cost"):
        row[name] = float(marked[name].sum()) if name == "cost" else int(marked[name].sum())
    return row


def harmonic_mean(a: Vector, b: Vector) -> Vector:
    """2ab / (a + b), and 0 where both are 0."""
    return np.asarray(2 * a * b / np.maximum(a + b, np.finfo(np.float64).tiny))


def _f1(wrong_N: Vector, right_M: Vector, settings: EvaluationConfig) -> Array:
    """F1 with its bounds; wrong and right solutions are resampled apart.

    Resamples of few solutions, or of all hits or all misses, are alike: there the bounds are the
    harmonic means of those of the two accuracies.
    """
    if not min(len(wrong_N), len(right_M)):
        return np.full(3, np.nan)
    if any(len(each) < FEWEST or len(set(each)) == 1 for each in (wrong_N, right_M)):
        return harmonic_mean(_share(wrong_N, settings), _share(right_M, settings))

    def statistic(wrong_RN: Array, right_RM: Array) -> Array:
        hits = wrong_RN @ wrong_N / len(wrong_N), right_RM @ right_M / len(right_M)
        return harmonic_mean(*hits)[:, None]

    sizes = [len(wrong_N), len(right_M)]
    return np.asarray(bootstrap(statistic, sizes, settings.confidence, settings.resamples)[0])


def _share(values_N: Vector, settings: EvaluationConfig) -> Array:
    """The mean of values that are 0 or 1, with its bounds."""
    if not len(values_N):
        return np.full(3, np.nan)
    mean = grid_mean(values_N[:, None], settings.confidence, fixed=True, limits=SHARE)
    return np.array([mean.value, mean.low, mean.high])


def _vector(values: pl.Series) -> Vector:
    return values.cast(pl.Float64).to_numpy()


def _with_interval(name: str, bounds: Array) -> Numbers:
    """The value and its bounds; None where they are NaN, which JSON does not know."""
    names = (name, f"{name}_low", f"{name}_high")
    return {key: None if np.isnan(x) else float(x) for key, x in zip(names, bounds, strict=True)}
