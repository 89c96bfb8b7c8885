"""Divergences between a student and a teacher distribution, each with its analytic gradient.

A divergence is a sum of terms over the vocabulary, in nats. Each function returns the terms [N, V]
and their slopes k_v = ∂ term_v / ∂ log q_v [N, V]; through the softmax, the gradient by logit u is
k_u − q_u Σ_v k_v.

Axes: N tokens, V vocabulary, K tokens of a support, B = K + 1 buckets, the last one being the tail.
The student is q, the teacher t.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Whole:
    """A divergence over the whole vocabulary at temperature 1, which `kernels` computes on a GPU.

    A loss above `clip` is scaled to it, with its gradient.
    """

    name: str
    beta: float = 0.5
    clip: float = math.inf


@dataclass(frozen=True)
class Pair:
    """Student and teacher distribution of each token; `log_ratio_NV` is log t − log q."""

    log_q_NV: Tensor
    q_NV: Tensor
    t_NV: Tensor
    log_ratio_NV: Tensor

    @classmethod
    def of(cls, log_q_NV: Tensor, log_t_NV: Tensor) -> Self:
        """Build from log-probabilities; the teacher's buffer is overwritten by the log-ratio."""
        t_NV = log_t_NV.exp()
        return cls(log_q_NV, log_q_NV.exp(), t_NV, log_t_NV.sub_(log_q_NV))

    def tempered(self, temperature: float) -> Self:
        """Return both distributions with their logits divided by the temperature."""
        log_t_NV = self.log_q_NV + self.log_ratio_NV
        tempered = (
            torch.log_softmax(log_p_NV / temperature, -1) for log_p_NV in (self.log_q_NV, log_t_NV)
        )
        return self.of(*tempered)

    def support(self, side: Literal["student", "teacher"], size: int) -> Tensor:
        """Return the ids [N, K] of the tokens that one side finds most likely."""
        return (self.q_NV if side == "student" else self.t_NV).topk(size).indices

    def bucketed(self, support_NK: Tensor) -> Self:
        """Keep the tokens of the support, and merge the rest of the vocabulary into a tail bucket.

        Both distributions still sum to 1, so a divergence remains one, and it can only shrink.
        """
        log_t_NV = self.log_q_NV + self.log_ratio_NV
        return self.of(*(_bucketed(log_p, support_NK) for log_p in (self.log_q_NV, log_t_NV)))

    def spread(self, gradient_NB: Tensor, support_NK: Tensor) -> Tensor:
        """Turn a gradient by bucket logits [N, B] into one by vocabulary logits [N, V].

        The tail's gradient is distributed in proportion to the student's probabilities.
        """
        share_NV = (self.log_q_NV - _tail(self.log_q_NV, support_NK)).exp_()
        return (share_NV * gradient_NB[:, -1:]).scatter_(1, support_NK, gradient_NB[:, :-1])


def forward_kl(pair: Pair, beta: float) -> tuple[Tensor, Tensor]:
    """Σ t log(t / q), the paper's divergence (arXiv 2606.11173)."""
    return pair.t_NV * pair.log_ratio_NV, -pair.t_NV


def reverse_kl(pair: Pair, beta: float) -> tuple[Tensor, Tensor]:
    """Σ q log(q / t) (arXiv 2306.08543)."""
    terms_NV = -pair.q_NV * pair.log_ratio_NV
    return terms_NV, terms_NV + pair.q_NV


def jensen_shannon(pair: Pair, beta: float) -> tuple[Tensor, Tensor]:
    """β KL(t ‖ m) + (1 − β) KL(q ‖ m) with m = β t + (1 − β) q (arXiv 2306.13649)."""
    log_m_over_q_NV = torch.logaddexp(
        pair.log_ratio_NV + math.log(beta), pair.log_ratio_NV.new_tensor(math.log1p(-beta))
    )
    student_NV = (beta - 1) * pair.q_NV * log_m_over_q_NV
    teacher_NV = beta * pair.t_NV * (pair.log_ratio_NV - log_m_over_q_NV)
    return teacher_NV + student_NV, student_NV


Divergence = Callable[[Pair, float], tuple[Tensor, Tensor]]

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jensen_shannon,
}


def _bucketed(log_p_NV: Tensor, support_NK: Tensor) -> Tensor:
    return torch.cat([log_p_NV.gather(1, support_NK), _tail(log_p_NV, support_NK)], 1)


def _tail(log_p_NV: Tensor, support_NK: Tensor) -> Tensor:
    """Return the log-probability [N, 1] of all tokens outside the support."""
    return log_p_NV.scatter(1, support_NK, -math.inf).logsumexp(1, keepdim=True)
