"""Intervals: the one place that turns samples into bounds, and says what the bounds cover.

Scores and paired differences form a grid of problems by seeds, and both were drawn at random: a new
test set has other problems, a new training run another seed. `grid_mean` counts both. Ratios of
tokens and ranks, which have no such grid, get a `bootstrap` over clusters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Array = NDArray[Any]

PROBLEMS, ONE_SEED, BOTH = "problems", "problems, within this seed only", "problems and seeds"
TWO_SEEDS = "problems and two seeds, which are too few (95 % may be 89 %, by simulation)"
"""Coverage of an interval: a fixed policy on other problems, the policy of one seed on other
problems, or other problems and other seeds, of which two are too few."""

SEEDS_COUNT, SEED_WEIGHT = 0.9, 1.3
"""Small-sample corrections of `half_width`, chosen by simulation."""

FEWEST = 5
"""Clusters for a bootstrap: resamples of fewer are mostly alike."""

_ROUNDING = 1e-9  # by which differences of shares may differ that are equal
_BLOCK = 2_000_000  # resampled clusters held in memory at once


@dataclass(frozen=True)
class Interval:
    """A value with its bounds, NaN where they are unknown, and the variation that they cover."""

    value: float
    low: float
    high: float
    covers: str


@dataclass(frozen=True)
class MeanSquares:
    """Two-way analysis of variance of a grid of P problems by S seeds, one value per cell.

    With the variances v of problems, seeds and cells, the mean squares have the expectations
    `problem` = v_cell + S v_problem, `seed` = v_cell + P v_seed and `residual` = v_cell. With one
    seed the parts cannot be told apart: `problem` is the variance over problems, the others are 0.
    """

    problem: float | Array
    seed: float | Array
    residual: float | Array
    problems: int
    seeds: int


def grid_mean(
    values_PS: ArrayLike,
    confidence: float,
    *,
    fixed: bool = False,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Mean of a grid of problems by seeds, with an interval over both.

    Args:
        values_PS: one value per problem and seed, such as a paired difference.
        confidence: such as 0.95.
        fixed: the policy is given rather than trained with a seed, as the base is; S is then 1.
        limits: what the value can be at all; the bounds are cut off there. Where they are finite,
            a grid without any variance has an interval, too.
    """
    values = np.asarray(values_PS, dtype=np.float64)
    mean, seeds = float(values.mean()), values.shape[1]
    half = float(half_width(mean_squares(values), confidence))
    covers = PROBLEMS if fixed else coverage(seeds)
    low, high = np.clip([mean - half, mean + half], *limits)
    if np.ptp(values) < _ROUNDING and np.isfinite(limits).all() and values.shape[0] > 1:
        # None of P problems differs from the others, such as 0 of 26: that says little of more. If
        # a share q differed, P in a row would not with probability (1 - q)^P. The q that leaves
        # half of 1 - confidence is Clopper and Pearson's bound; at most it lies at a limit.
        share = 1 - ((1 - confidence) / 2) ** (1 / values.shape[0])
        low, high = mean - share * (mean - limits[0]), mean + share * (limits[1] - mean)
    return Interval(mean, float(low), float(high), covers)


def coverage(seeds: int) -> str:
    """What an interval over so many seeds of a trained condition covers, in words."""
    return {1: ONE_SEED, 2: TWO_SEEDS}.get(seeds, BOTH)


def mean_squares(values_PS: ArrayLike) -> MeanSquares:
    """Mean squares of a grid of problems by seeds; NaN where there is a single problem."""
    values = np.asarray(values_PS, dtype=np.float64)
    problems, seeds = values.shape
    if problems < 2:
        return MeanSquares(np.nan, np.nan, np.nan, problems, seeds)
    mean_P, mean_S = values.mean(1), values.mean(0)
    problem = seeds * float(mean_P.var(ddof=1))
    if seeds == 1:
        return MeanSquares(problem, 0.0, 0.0, problems, seeds)
    residual_PS = values - mean_P[:, None] - mean_S + values.mean()
    residual = float((residual_PS**2).sum()) / ((problems - 1) * (seeds - 1))
    return MeanSquares(problem, problems * float(mean_S.var(ddof=1)), residual, problems, seeds)


def half_width(found: MeanSquares, confidence: float) -> Array:
    """Half the width of the interval of a grid's mean; the mean squares may be arrays.

    The t interval of a two-way random-effects model, with Satterthwaite's degrees of freedom (An
    Approximate Distribution of Estimates of Variance Components, Biometrics Bulletin 2, 1946):

        variance = (MS_problem + max(0, MS_seed - MS_residual)) / (P S)

    Where the seeds' mean square is below SEEDS_COUNT times the residual one, the seeds show no
    variance of their own, and the P - 1 degrees of freedom are those of the problems. Elsewhere
    few seeds make them few: never below S - 1, those of the t interval over seeds alone. With three
    seeds the textbook's formula still covers only 92.4 % at times, so the seeds weigh SEED_WEIGHT
    times as much in it. Both constants were chosen by simulation. With 3 or 5 seeds, 30 to 200
    problems and seed deviations of 0 to 5 points, tests/benchmarks/coverage.py finds 92 to 97 %.
    With two seeds it is 89 to 97 %, falling the more the seeds differ and the more problems there
    are; `TWO_SEEDS` says so.
    """
    problems, seeds, residual = found.problems, found.seeds, found.residual
    variance: Array = np.asarray(found.problem, dtype=np.float64)
    freedom: Array = np.asarray(float(problems - 1))
    if seeds > 1:
        variance = np.asarray(variance + np.maximum(np.asarray(found.seed) - residual, 0))
        squares = (
            np.square(found.problem) / (problems - 1)
            + SEED_WEIGHT * np.square(found.seed) / (seeds - 1)
            + np.square(residual) / ((problems - 1) * (seeds - 1))
        )
        few: Array = np.divide(variance**2, squares, out=np.ones_like(variance), where=squares > 0)
        counts = np.asarray(found.seed) > SEEDS_COUNT * np.asarray(residual)
        few = np.clip(few, min(seeds, problems) - 1, max(seeds, problems) - 1)
        freedom = np.where(counts, few, problems - 1)
    tail = stdtrit(freedom, (1 + confidence) / 2)
    return np.asarray(tail * np.sqrt(variance / (problems * seeds)))


def bootstrap(
    statistic: Callable[..., Array], sizes: Sequence[int], confidence: float, resamples: int
) -> Array:
    """Percentile bootstrap over clusters: value, lower and upper bound of M statistics, [M, 3].

    The same resamples every time. Bounds are NaN where a stratum has fewer than FEWEST clusters.

    Args:
        statistic: maps how often each cluster was drawn, one array [R, N] per stratum, to [R, M].
        sizes: clusters N of each stratum; strata are resampled apart.
        confidence: such as 0.95.
        resamples: R in all.
    """
    value_M = statistic(*(np.ones((1, size)) for size in sizes))[0]
    if min(sizes) < FEWEST:
        return np.stack([value_M, value_M * np.nan, value_M * np.nan], axis=1)
    rng = np.random.default_rng(0)
    block = max(1, _BLOCK // max(sizes))
    counts = [min(block, resamples - start) for start in range(0, resamples, block)]
    resampled_RM = np.concatenate(
        [statistic(*(_draws(rng, count, size) for size in sizes)) for count in counts]
    )
    tail = (1 - confidence) / 2
    low_M, high_M = np.nanquantile(resampled_RM, [tail, 1 - tail], axis=0)
    return np.stack([value_M, low_M, high_M], axis=1)


def _draws(rng: np.random.Generator, resamples: int, clusters: int) -> Array:
    """Return how often each cluster is drawn, as many as there are, with replacement: [R, N]."""
    drawn_RN = rng.integers(clusters, size=(resamples, clusters))
    cells = drawn_RN + clusters * np.arange(resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=resamples * clusters)
    return np.asarray(counts.reshape(resamples, clusters), dtype=np.float64)
