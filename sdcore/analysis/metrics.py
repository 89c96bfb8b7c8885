"""Scores of sampled answers per problem, and intervals that treat a problem as the unit.

Everything is a vector over problems first; means, intervals and paired differences come after. Over
several seeds, average each problem over the seeds before the bootstrap.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sdcore.config import EvaluationConfig
from sdcore.errors import DataError

Vector = NDArray[np.float64]

METRICS = ("avg_at_k", "maj_at_k", "pass_at_k")


def avg_at_k(correct_PN: ArrayLike) -> Vector:
    """Share of correct samples of each problem."""
    return np.asarray(np.asarray(correct_PN, dtype=np.float64).mean(axis=1))


def maj_at_k(answers_PN: ArrayLike, correct_PN: ArrayLike) -> Vector:
    """Chance that the most frequent answer is correct, ties being broken at random.

    `answers_PN` are codes: equal answers of a problem have equal codes, and so do all its samples
    without an answer, which vote for that and can win. Tied answers have equally many samples, so
    the chance is the share of correct ones among the samples of the top answers.
    """
    answers, correct = np.asarray(answers_PN), np.asarray(correct_PN, dtype=bool)
    votes_PN = (answers[:, :, None] == answers[:, None, :]).sum(axis=2)
    top_PN = votes_PN == votes_PN.max(axis=1, keepdims=True)
    return np.asarray((top_PN & correct).sum(axis=1) / top_PN.sum(axis=1))


def pass_at_k(correct_PN: ArrayLike, k: int) -> Vector:
    """Unbiased chance that one of k samples is correct: 1 - C(N - c, k) / C(N, k).

    Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1, as the stable product.
    """
    correct = np.asarray(correct_PN, dtype=bool)
    samples = correct.shape[1]
    if not 1 <= k <= samples:
        raise DataError("pass@k needs at least k samples", got=f"k = {k}, {samples} samples")
    wrong_P1 = samples - correct.sum(axis=1, keepdims=True)
    drawn_K = np.arange(k)
    return np.asarray(1 - np.prod(np.maximum(wrong_P1 - drawn_K, 0) / (samples - drawn_K), axis=1))


def per_problem(rollouts: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """The metrics of each problem: columns `by`, problem_id, and METRICS with k = samples.

    Args:
        rollouts: columns `by`, problem_id, sample_index, answer and correct. Correct answers
            count as one and the same in the vote, however they are written.
        by: columns that tell policies apart.

    Raises:
        DataError: a problem does not have exactly the samples 0 .. k - 1, once each.
    """
    keys = [*by, "problem_id"]
    coded = rollouts.sort(*keys, "sample_index").with_columns(code=_answer_codes())
    k = _samples(coded, keys)
    correct_PN = coded["correct"].to_numpy().reshape(-1, k)
    answers_PN = coded["code"].to_numpy().reshape(-1, k)
    return coded.gather_every(k).select(
        *keys,
        avg_at_k=avg_at_k(correct_PN),
        maj_at_k=maj_at_k(answers_PN, correct_PN),
        pass_at_k=pass_at_k(correct_PN, k),
    )


def score(rollouts: pl.DataFrame, k: int, settings: EvaluationConfig) -> dict[str, Any]:
    """One policy on one split: the columns of the table `scores` that follow from its rollouts.

    Raises:
        DataError: samples are missing, repeat, or share a random seed.
    """
    if rollouts["sampling_seed"].n_unique() != len(rollouts):
        raise DataError("samples share a sampling seed", fix="delete these rollouts, rerun")
    metrics = per_problem(rollouts)
    if len(rollouts) != k * len(metrics):
        raise DataError("wrong number of samples", got=len(rollouts), expected=k * len(metrics))
    row: dict[str, Any] = {"problems": len(metrics), "k": k}
    for name in METRICS:
        values_P = metrics[name].to_numpy()
        low, high = interval(values_P, settings.confidence, settings.resamples)
        row |= {name: float(values_P.mean()), f"{name}_low": low, f"{name}_high": high}
    lengths = rollouts["response_ids"].list.len()
    return row | {
        "mean_reward": rollouts["reward"].mean(),
        "mean_length": lengths.mean(),
        "format_rate": rollouts["well_formed"].mean(),
    }


def interval(
    values_P: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over problems; the same seed, the same interval.

    A single problem has no spread to resample: its bounds are not a number.
    """
    values = np.asarray(values_P, dtype=np.float64)
    if len(values) < 2:
        return math.nan, math.nan
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _answer_codes() -> pl.Expr:
    """Whole numbers that stand for the answers: one for all that are correct, one for none."""
    others = pl.col("answer").rank("dense").cast(pl.Int64).fill_null(0)
    return pl.when("correct").then(-1).otherwise(others)


def _samples(rollouts: pl.DataFrame, keys: Sequence[str]) -> int:
    """The number of samples a problem, if all problems have that many distinct ones."""
    index = pl.col("sample_index")
    groups = rollouts.group_by(keys).agg(
        rows=pl.len(), distinct=index.n_unique(), first=index.min(), last=index.max()
    )
    k = len(rollouts) // max(len(groups), 1)
    bad = groups.filter(
        (pl.col("rows") != k) | (pl.col("distinct") != k) | (pl.col("first") != 0)
        | (pl.col("last") != k - 1)
    )  # fmt: skip
    if len(bad) or not k:
        raise DataError(
            "samples are missing or repeat",
            got=bad.head(1).to_dicts() or "no rollouts",
            expected="each problem to have the samples 0 .. k - 1, once each",
        )
    return k
