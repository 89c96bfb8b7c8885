"""What an experiment can show before it is run: its minimum detectable effect.

Two policies answer the same P problems with K samples each, averaged over S seeds. The paired
difference of their accuracies then has the variance (ω² + 2 σ² / (K S)) / P: ω² is the variance of
the true difference over problems, σ² that of one sample around its problem's mean. The
formula is that of Miller, Adding Error Bars to Evals, https://arxiv.org/abs/2411.00640, section 5.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

POWER = 0.8


@dataclass(frozen=True)
class Variance:
    """Of a correctness of 0 or 1: `between` problems' means, and `within` a problem's samples."""

    between: float
    within: float


@dataclass(frozen=True)
class Detectable:
    """The smallest true difference in accuracy that is found with the chance `POWER`.

    `shared` holds where an effect is the same on every problem (ω² = 0: only the sampling noise
    of both sides is left), `unrelated` where the two policies solve unrelated problems (ω² is
    twice the variance between problems). A real experiment lies in between.
    """

    shared: float
    unrelated: float


def variance(correct_PN: ArrayLike) -> Variance | None:
    """Both parts of the variance from N samples of each of P problems, by the method of moments.

    Each is unbiased, but that between problems is cut off at 0. None where there are fewer than
    two problems or two samples, which do not tell the parts apart.
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
    """The minimum detectable effect of a paired, two-sided comparison; accuracies are in 0 .. 1.

    Args:
        found: measured on the untrained policy; that of trained ones may differ.
        problems: of the test split.
        samples: of each problem by each policy.
        seeds: over which a condition is averaged.
        confidence: of the test, such as 0.95.
    """
    factor = float(norm.ppf((1 + confidence) / 2) + norm.ppf(POWER))
    noise = 2 * found.within / (samples * seeds)
    spreads = (0.0, 2 * found.between)
    return Detectable(*(factor * float(np.sqrt((spread + noise) / problems)) for spread in spreads))
