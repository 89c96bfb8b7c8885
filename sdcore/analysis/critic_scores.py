"""How good a critic is, from its critiques of solutions whose first wrong step is known."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from sdcore.analysis.metrics import interval
from sdcore.config import EvaluationConfig

Vector = NDArray[np.float64]


def critic_scores(trials: pl.DataFrame, settings: EvaluationConfig) -> dict[str, Any]:
    """Scores in the manner of ProcessBench (arXiv 2412.06559), with bootstrap intervals.

    `error_accuracy` is the share of wrong solutions whose first wrong step is named, and
    `correct_accuracy` the share of right ones in which no step is; `f1` is their harmonic mean.
    What the critic claims counts there, whether its critique is valid or not; where nothing could
    be made out it has found nothing. `false_alarms` are right solutions in which a step is called
    wrong, `validity` the share of critiques that may be trained on. An interval is None where
    there is nothing to resample.

    Args:
        trials: columns truth, verdict, claimed, valid, repaired, attempts, prompt_tokens, tokens
            and cost, a row a solution; truth and claimed are steps from 1, null for none.
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
    row: dict[str, Any] = {"wrong_solutions": len(wrong), "right_solutions": len(right)}
    row |= _with_interval("f1", _f1(_vector(wrong["hit"]), _vector(right["hit"]), settings))
    for name, values in shares.items():
        low, high = interval(_vector(values), settings.confidence, settings.resamples)
        row |= _with_interval(name, (_mean(_vector(values)), low, high))
    for name in ("attempts", "prompt_tokens", "tokens", "cost"):
        row[name] = marked[name].sum()
    return row


def harmonic_mean(a: Vector, b: Vector) -> Vector:
    """2ab / (a + b), and 0 where both are 0."""
    return np.asarray(2 * a * b / np.maximum(a + b, np.finfo(np.float64).tiny))


def _f1(wrong: Vector, right: Vector, settings: EvaluationConfig) -> tuple[float, float, float]:
    """F1 with its interval; wrong and right solutions are resampled apart."""
    if min(len(wrong), len(right)) < 2:
        return np.nan, np.nan, np.nan

    def statistic(a: Vector, b: Vector, axis: int = -1) -> Vector:
        return harmonic_mean(a.mean(axis), b.mean(axis))

    found = stats.bootstrap(
        (wrong, right), statistic, confidence_level=settings.confidence,
        n_resamples=settings.resamples, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(statistic(wrong, right)), float(found.low), float(found.high)


def _vector(values: pl.Series) -> Vector:
    return values.cast(pl.Float64).to_numpy()


def _mean(values: Vector) -> float:
    return float(values.mean()) if len(values) else np.nan


def _with_interval(name: str, found: tuple[float, float, float]) -> dict[str, float | None]:
    """The value and its bounds; None where they are not a number, which JSON does not know."""
    names = (name, f"{name}_low", f"{name}_high")
    return {key: None if np.isnan(value) else value for key, value in zip(names, found)}
