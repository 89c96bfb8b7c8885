"""Training objectives: pure functions from a chunk of tokens to losses and logit gradients.

`chunked_loss` in `sdcore.training.projection` takes them with their settings bound by
`functools.partial`, or `Distillation`, most of which it computes in a kernel on a GPU.

Axes: N tokens of a chunk, T tokens of the batch, V vocabulary, P prompts, G rollouts of a group.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdcore.config import DistillConfig, GrpoConfig
from sdcore.training.divergences import DIVERGENCES, Pair, Whole
from sdcore.training.projection import Chunk


@dataclass(frozen=True)
class Distillation:
    """`distillation` under settings, and the divergence that it is over the whole vocabulary."""

    settings: DistillConfig

    def __call__(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return losses [N] and their gradients by the student's logits [N, V]."""
        return distillation(chunk, self.settings)

    @property
    def whole(self) -> Whole | None:
        """None for another support or temperature, and for the sampled token's gradient."""
        settings = self.settings
        if not settings.is_whole:
            return None
        clip = settings.clip_value if settings.clip == "token" else math.inf
        return Whole(settings.divergence, settings.beta, clip)


def distillation(chunk: Chunk, settings: DistillConfig) -> tuple[Tensor, Tensor]:
    """Divergence between student and teacher at the distillation temperature, in nats per token.

    Args:
        chunk: tokens with a teacher.
        settings: divergence and its beta, support, clip, temperature.

    Returns:
        Losses [N] and their gradients by the student's logits [N, V].
    """
    assert chunk.pair is not None, "distillation needs a teacher"
    if _is_plain_forward_kl(settings):
        # The general code below gives the same, with more memory and more passes.
        assert chunk.scores.kl_T is not None
        return chunk.scores.kl_T, chunk.q_NV.sub_(chunk.pair.t_NV)
    pair = chunk.tempered(settings.temperature).pair
    assert pair is not None
    if settings.divergence == "policy_gradient":
        loss_N, gradient_NV = _policy_gradient(pair, chunk.tokens_N)
    elif settings.support == "vocabulary" or settings.top_k >= pair.q_NV.shape[1]:
        loss_N, gradient_NV = _divergence(pair, settings)
    else:
        support_NK = pair.support(settings.support, settings.top_k)
        loss_N, gradient_NB = _divergence(pair.bucketed(support_NK), settings)
        gradient_NV = pair.spread(gradient_NB, support_NK)
    return loss_N, _by_logits(gradient_NV, settings.temperature)


def grpo(
    chunk: Chunk,
    settings: GrpoConfig,
    advantages_T: Tensor,
    old_logprobs_T: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate −min(r A, clip(r) A), plus the KL to the reference (arXiv 2402.03300).

    p is the distribution that was sampled from, softmax(logits / `temperature`) with the sampling
    temperature: only for it is this the policy gradient. (Top-p is ignored.) r = p / p_old, where
    p_old comes from stored log-probs at the same temperature, so that several steps may reuse a
    batch; without them p_old = p, the strictly on-policy case. The KL is the paper's estimator on
    the sampled token, e^d − d − 1 with d = log p_reference − log p; the chunk's teacher is the
    reference.

    Returns:
        Losses [N] and their gradients by the student's logits [N, V].
    """
    chunk = chunk.tempered(temperature)
    logprob_N = _at(chunk.log_q_NV, chunk.tokens_N)
    old_N = logprob_N if old_logprobs_T is None else old_logprobs_T[chunk.rows]
    advantage_N, ratio_N = advantages_T[chunk.rows], (logprob_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    plain_N, bound_N = ratio_N * advantage_N, clipped_N * advantage_N
    loss_N = -torch.minimum(plain_N, bound_N)
    # As in PPO: a ratio beyond its bound has no gradient.
    slope_N = torch.where(plain_N <= bound_N, -plain_N, 0.0)
    if settings.kl_coefficient:
        assert chunk.pair is not None, "the KL needs a reference"
        gap_N = _at(chunk.pair.log_ratio_NV, chunk.tokens_N)
        loss_N = loss_N + settings.kl_coefficient * (gap_N.exp() - gap_N - 1)
        slope_N = slope_N + settings.kl_coefficient * (1 - gap_N.exp())
    gradient_NV = _logprob_gradient(slope_N, chunk.q_NV, chunk.tokens_N)
    return loss_N, _by_logits(gradient_NV, temperature)


def cross_entropy(chunk: Chunk, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """−log q(y) of the response tokens: supervised learning, used by the warm-up.

    Returns:
        Losses [N] and their gradients q − onehot(y) by the student's logits [N, V].
    """
    chunk = chunk.tempered(temperature)
    logprob_N = _at(chunk.log_q_NV, chunk.tokens_N)
    slope_N = torch.full_like(logprob_N, -1.0)
    gradient_NV = _logprob_gradient(slope_N, chunk.q_NV, chunk.tokens_N)
    return -logprob_N, _by_logits(gradient_NV, temperature)


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """Return (reward − group mean) / group standard deviation (arXiv 2402.03300), [P, G].

    The standard deviation is the unbiased one. A group of equal rewards has advantages 0.
    """
    silent_P1 = (rewards_PG == rewards_PG[:, :1]).all(1, keepdim=True)
    centred_PG = (rewards_PG - rewards_PG.mean(1, keepdim=True)).masked_fill(silent_P1, 0.0)
    deviation_P1 = rewards_PG.std(1, keepdim=True).masked_fill(silent_P1, 1.0)
    return centred_PG / deviation_P1


def _is_plain_forward_kl(settings: DistillConfig) -> bool:
    plain = settings.divergence == "forward_kl" and settings.clip == "none"
    return settings.is_whole and plain


def _divergence(pair: Pair, settings: DistillConfig) -> tuple[Tensor, Tensor]:
    """Loss [N] and gradient by the logits of the pair's support, clipped.

    A token whose loss L exceeds the clip value c is scaled by c / L: its loss becomes c, and its
    gradient keeps its direction. (OPSD, arXiv 2601.18734, clips the terms of the sum instead. Then
    the largest term loses its slope, and the rest can point the opposite way.)
    """
    terms_NV, slopes_NV = DIVERGENCES[settings.divergence](pair, settings.beta)
    loss_N = terms_NV.sum(1)
    gradient_NV = slopes_NV.addcmul_(pair.q_NV, slopes_NV.sum(1, keepdim=True), value=-1)
    if settings.clip == "token":
        bound = settings.clip_value
        scale_N = torch.where(loss_N > bound, bound / loss_N, 1.0)
        loss_N, gradient_NV = loss_N * scale_N, gradient_NV.mul_(scale_N[:, None])
    return loss_N, gradient_NV


def _policy_gradient(pair: Pair, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
    """−A log q(y) with the advantage A = log t(y) − log q(y) held constant (arXiv 2601.20802).

    On tokens sampled at the distillation temperature, the expected gradient is that of the reverse
    KL; the value is not.
    """
    advantage_N = _at(pair.log_ratio_NV, tokens_N)
    loss_N = -advantage_N * _at(pair.log_q_NV, tokens_N)
    return loss_N, _logprob_gradient(-advantage_N, pair.q_NV, tokens_N)


def _logprob_gradient(slope_N: Tensor, q_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """slope · ∂ log q(y) / ∂ logits = slope · (onehot(y) − q), written over q."""
    gradient_NV = q_NV.mul_(-slope_N[:, None])
    return gradient_NV.scatter_add_(1, tokens_N[:, None], slope_N[:, None])


def _by_logits(gradient_NV: Tensor, temperature: float) -> Tensor:
    """Turn the gradient by logits / temperature into the gradient by the logits."""
    return gradient_NV if temperature == 1.0 else gradient_NV.div_(temperature)


def _at(values_NV: Tensor, tokens_N: Tensor) -> Tensor:
    return values_NV.gather(1, tokens_N[:, None])[:, 0]
