"""avg@k, maj@k and pass@k of each problem, from the grid of its samples."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdcore.errors import DataError

Vector = NDArray[np.float64]

METRICS = ("avg_at_k", "maj_at_k", "pass_at_k")
SHARE = (0.0, 1.0)
"""The limits of every metric."""


def avg_at_k(correct_PN: ArrayLike) -> Vector:
    """Share of correct samples of each problem."""
    return np.asarray(np.asarray(correct_PN, dtype=np.float64).mean(axis=1))


def maj_at_k(answers_PN: ArrayLike, correct_PN: ArrayLike) -> Vector:
    """Chance that the most frequent answer of each problem is correct, ties broken at random.

    `answers_PN` are codes: equal answers of a problem have equal codes. Samples without an answer
    are one group like any other: they vote for "no answer", which can win and is never correct.
    Tied answers have equally many samples, so the chance is the share of correct ones among the
    samples of the top answers.
    """
    answers, correct = np.asarray(answers_PN), np.asarray(correct_PN, dtype=bool)
    votes_PN = (answers[:, :, None] == answers[:, None, :]).sum(axis=2)
    top_PN = votes_PN == votes_PN.max(axis=1, keepdims=True)
    return np.asarray((top_PN & correct).sum(axis=1) / top_PN.sum(axis=1))


def pass_at_k(correct_PN: ArrayLike, k: int) -> Vector:
    """Unbiased chance that one of k samples is correct: 1 - C(N - c, k) / C(N, k).

    Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1, as the stable product.

    Raises:
        DataError: k is not within 1 and N.
    """
    correct = np.asarray(correct_PN, dtype=bool)
    samples = correct.shape[1]
    if not 1 <= k <= samples:
        raise DataError("pass@k needs at least k samples", got=f"k = {k}, {samples} samples")
    wrong_P1 = samples - correct.sum(axis=1, keepdims=True)
    drawn_K = np.arange(k)
    return np.asarray(1 - np.prod(np.maximum(wrong_P1 - drawn_K, 0) / (samples - drawn_K), axis=1))
