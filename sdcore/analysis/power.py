"""Power of an experiment before it is run: its minimum detectable effect.

Two policies answer the same P problems with K samples each under S seeds. The difference d of one
problem and seed has three variances, those of the intervals (`intervals.MeanSquares`):

    problems   2 τ² (1 - r): τ² is the variance of problems' accuracies, r how far both policies
               agree on which problems are hard
    seeds      of the difference, δ² points squared: how much training runs differ by their seed
    cells      2 σ² / K: σ² is the variance of one sample around its problem's accuracy

τ² and σ² are measured on the untrained policy. r and δ show only after training, so the effect is
stated for a range of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import ndtr

from sdcore.analysis.intervals import Array, MeanSquares, half_width

POWER = 0.8
AGREEMENT = 0.7
"""r of the stated effects; in the quickstart the conditions agree to between 0.6 and 0.8."""
SEED_DEVIATIONS = (0.0, 0.01, 0.02, 0.04)
"""δ of the stated effects; in the quickstart it is up to 5 points, mostly 1 to 2."""

_DRAWS = 20_000


@dataclass(frozen=True)
class Variance:
    """Of a correctness of 0 or 1: `between` problems' means, and `within` a problem's samples."""

    between: float
    within: float


@dataclass(frozen=True)
class Detectable:
    """The smallest true difference in accuracy that is resolved with the chance `POWER`.

    `effect` by the seed deviation of the difference. With one seed there is one entry, for a
    deviation of 0: it holds within this seed only.
    """

    seeds: int
    effect: dict[float, float]


def variance(correct_PN: ArrayLike) -> Variance | None:
    """Estimate both parts of the variance from N samples of each of P problems, by moments.

    Each is unbiased, but that between problems is cut off at 0. None with fewer than two problems
    or two samples, where the parts cannot be told apart.
    """
    correct = np.asarray(correct_PN, dtype=np.float64)
    problems, samples = correct.shape
    if problems < 2 or samples < 2:
        return None
    within = float(correct.var(axis=1, ddof=1).mean())
    of_means = float(correct.mean(axis=1).var(ddof=1))
    return Variance(max(of_means - within / samples, 0.0), within)


def detectable(
    found: Variance, problems: int, samples: int, seeds: int, confidence: float = 0.95
) -> Detectable:
    """Return the minimum detectable effect of a planned test, for the planned seeds.

    Args:
        found: measured on the untrained policy; that of trained ones may differ.
        problems: of the test split.
        samples: per problem, policy and seed.
        seeds: of every condition.
        confidence: of the intervals, such as 0.95.
    """
    spread, noise = 2 * found.between * (1 - AGREEMENT), 2 * found.within / samples
    deviations = SEED_DEVIATIONS if seeds > 1 else (0.0,)
    effects = {
        deviation: minimum_effect((spread, deviation**2, noise), problems, seeds, confidence)
        for deviation in deviations
    }
    return Detectable(seeds, effects)


def minimum_effect(
    variances: tuple[float, float, float], problems: int, seeds: int, confidence: float = 0.95
) -> float:
    """Return the difference whose interval excludes 0 on the right side with the chance `POWER`.

    Mean squares are drawn from their chi-square distributions, so this is the power of the very
    interval that will be computed, not of one with a known width.

    Args:
        variances: of problems, of seeds and of a cell, as in the module's docstring.
        problems: P.
        seeds: S; with 1, the variance of seeds is left out: within this seed only.
        confidence: of the interval.
    """
    problem, seed, cell = variances
    if seeds == 1:
        seed = 0.0
    rng = np.random.default_rng(0)

    def drawn(expected: float, freedom: int) -> Array:
        if not freedom:
            return np.zeros(_DRAWS)
        return np.asarray(expected * rng.chisquare(freedom, _DRAWS) / freedom)

    squares = MeanSquares(
        problem=drawn(cell + seeds * problem, problems - 1),
        seed=drawn(cell + problems * seed, seeds - 1),
        residual=drawn(cell, (problems - 1) * (seeds - 1)),
        problems=problems,
        seeds=seeds,
    )
    error = float(np.sqrt(problem / problems + seed / seeds + cell / (problems * seeds)))
    if error == 0:
        return 0.0
    half_R = half_width(squares, confidence)

    def excess(effect: float) -> float:
        return float(ndtr((effect - half_R) / error).mean()) - POWER

    return float(brentq(excess, 0, 10 * float(half_R.max()) + 10 * error))
