"""A chunk's divergence, its gradient and the diagnostics in one kernel, for a GPU.

A program reads a row of student's and teacher's logits twice: for the softmax statistics, found
online (arXiv 1805.02867), and for the sums over the vocabulary. The gradient of the forward KL
needs none of these sums and is written in the second pass, that of the others in a third. Beside
the logits only the gradient is in memory, and it overwrites the student's where it is as wide.

Triton comes with PyTorch's builds for GPUs; `sdcore.training.projection` imports this module only
there. On a CPU it runs if `TRITON_INTERPRET=1` was set before the import, as in the tests.

Axes: N tokens of a chunk, V vocabulary; in the kernel B, a block of the vocabulary. The student is
q, the teacher t.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdcore.training.divergences import DIVERGENCES, Whole
from sdcore.training.projection import FLOOR, TokenScores

BLOCK = 4096  # 16 numbers per thread and model, so that enough reads are in flight
WARPS = 8
_FLOOR = tl.constexpr(FLOOR)
_LOWEST = tl.constexpr(-1e30)  # below any logit but -inf, and itself no infinity: inf - inf is NaN


def divergence(
    student_NV: Tensor,
    teacher_NV: Tensor,
    tokens_N: Tensor,
    whole: Whole,
    gradient_NV: Tensor | None,
) -> tuple[Tensor, TokenScores]:
    """Return losses [N] and diagnostics [N]; write the losses' gradients by the student's logits.

    Args:
        student_NV: float32 logits, contiguous.
        teacher_NV: the same of the teacher.
        tokens_N: the response tokens.
        whole: which divergence.
        gradient_NV: where the gradient is written, contiguous; `student_NV` itself may be it. None
            where it is not wanted.
    """
    if gradient_NV is None:
        written = "never"
    else:
        once = whole.name == "forward_kl" and math.isinf(whole.clip)
        written = "second pass" if once else "third pass"
    assert whole.name in DIVERGENCES, "the kernel knows these"
    assert student_NV.dtype == teacher_NV.dtype == torch.float32, "the kernel adds up in float32"
    assert student_NV.is_contiguous(), "the kernel finds a row by its number"
    loss_N, logprob_N, entropy_N, teacher_logprob_N, kl_N = (
        student_NV.new_empty(len(student_NV)) for _ in range(5)
    )
    _rows[(len(student_NV),)](
        student_NV, teacher_NV.contiguous(), tokens_N,
        student_NV if gradient_NV is None else gradient_NV,
        loss_N, logprob_N, entropy_N, teacher_logprob_N, kl_N,
        math.log(whole.beta), math.log1p(-whole.beta), whole.beta, whole.clip, student_NV.shape[1],
        NAME=whole.name, WRITTEN=written, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return loss_N, TokenScores(logprob_N, entropy_N, teacher_logprob_N, kl_N)


@triton.jit  # type: ignore[untyped-decorator]
def _statistics(logits, V, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Maximum m and log Σ exp(x − m): log p = (x − m) − log Σ keeps its digits however large x is.

    Each lane keeps both of what it has read; they are combined at the end.
    """
    top_B = tl.full([BLOCK], _LOWEST, tl.float32)
    sum_B = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        id_B = start + tl.arange(0, BLOCK)
        logit_B = tl.load(logits + id_B, mask=id_B < V, other=-float("inf"))
        higher_B = tl.maximum(top_B, logit_B)
        sum_B = sum_B * tl.exp(top_B - higher_B) + tl.exp(logit_B - higher_B)
        top_B = higher_B
    top = tl.max(top_B, 0)
    return top, tl.log(tl.sum(sum_B * tl.exp(top_B - top), 0))


@triton.jit
def _log_prob(logit, top, log_sum):  # type: ignore[no-untyped-def]
    """At least FLOOR; NaN stays NaN, which `tl.maximum` would drop."""
    log_p = logit - top - log_sum
    return tl.where(log_p < _FLOOR, _FLOOR, log_p)


@triton.jit
def _distributions(student, teacher, id_B, V, top_q, sum_q, top_t, sum_t):  # type: ignore[no-untyped-def]
    """Log q, q, t and log t − log q of a block; beyond the vocabulary q = t = 0."""
    inside_B = id_B < V
    logit_q_B = tl.load(student + id_B, mask=inside_B, other=-float("inf"))
    logit_t_B = tl.load(teacher + id_B, mask=inside_B, other=-float("inf"))
    log_q_B = _log_prob(logit_q_B, top_q, sum_q)
    log_t_B = _log_prob(logit_t_B, top_t, sum_t)
    return log_q_B, tl.exp(log_q_B), tl.exp(log_t_B), log_t_B - log_q_B


@triton.jit  # type: ignore[untyped-decorator]
def _terms(q_B, t_B, log_ratio_B, log_beta, log_rest, beta, NAME: tl.constexpr):  # type: ignore[no-untyped-def]
    """Terms of the divergence, and their slopes by log q, as in `divergences`.

    A multiple of q in the slopes is left out: it does not change the gradient k − q Σ k.
    """
    if NAME == "forward_kl":
        terms_B = t_B * log_ratio_B
        slopes_B = -t_B
    elif NAME == "reverse_kl":
        terms_B = -q_B * log_ratio_B
        slopes_B = terms_B
    else:
        # With d = log(β t / ((1 − β) q)): log m/q = log(1 − β) + softplus(d), and log t/m likewise.
        d_B = log_ratio_B + log_beta - log_rest
        both_B = tl.log(1 + tl.exp(-tl.abs(d_B)))
        slopes_B = (beta - 1) * q_B * (log_rest + tl.maximum(d_B, 0.0) + both_B)
        terms_B = slopes_B - beta * t_B * (log_beta + tl.maximum(-d_B, 0.0) + both_B)
    return terms_B, slopes_B


@triton.jit  # type: ignore[untyped-decorator]
def _rows(  # type: ignore[no-untyped-def]
    student, teacher, tokens, gradient,
    loss_N, logprob_N, entropy_N, teacher_logprob_N, kl_N,
    log_beta, log_rest, beta, clip, V,
    NAME: tl.constexpr, WRITTEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per token."""
    row = tl.program_id(0)
    token = tl.load(tokens + row)
    student += row.to(tl.int64) * V
    teacher += row.to(tl.int64) * V
    gradient += row.to(tl.int64) * V
    # Before any write: the gradient may overwrite the student's logits. (The sums of the next two
    # lines make all threads wait for each other.)
    chosen_q = tl.load(student + token)
    chosen_t = tl.load(teacher + token)
    top_q, sum_q = _statistics(student, V, BLOCK)
    top_t, sum_t = _statistics(teacher, V, BLOCK)

    entropy_B = tl.zeros([BLOCK], tl.float32)
    kl_B = tl.zeros([BLOCK], tl.float32)
    loss_B = tl.zeros([BLOCK], tl.float32)
    slope_B = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        id_B = start + tl.arange(0, BLOCK)
        log_q_B, q_B, t_B, log_ratio_B = _distributions(
            student, teacher, id_B, V, top_q, sum_q, top_t, sum_t
        )
        entropy_B -= q_B * log_q_B
        kl_B += t_B * log_ratio_B
        if WRITTEN == "second pass":
            tl.store(gradient + id_B, (q_B - t_B).to(gradient.dtype.element_ty), mask=id_B < V)
        if WRITTEN == "third pass":
            terms_B, slopes_B = _terms(q_B, t_B, log_ratio_B, log_beta, log_rest, beta, NAME)
            loss_B += terms_B
            slope_B += slopes_B
    kl = tl.sum(kl_B, 0)
    loss = kl
    if WRITTEN == "third pass":
        loss = tl.sum(loss_B, 0)
        slope = tl.sum(slope_B, 0)
        scale = tl.where(loss > clip, clip / loss, 1.0)
        loss = loss * scale
        for start in range(0, V, BLOCK):
            id_B = start + tl.arange(0, BLOCK)
            log_q_B, q_B, t_B, log_ratio_B = _distributions(
                student, teacher, id_B, V, top_q, sum_q, top_t, sum_t
            )
            terms_B, slopes_B = _terms(q_B, t_B, log_ratio_B, log_beta, log_rest, beta, NAME)
            gradient_B = scale * (slopes_B - q_B * slope)
            tl.store(gradient + id_B, gradient_B.to(gradient.dtype.element_ty), mask=id_B < V)
    tl.store(loss_N + row, loss)
    tl.store(logprob_N + row, _log_prob(chosen_q, top_q, sum_q))
    tl.store(entropy_N + row, tl.sum(entropy_B, 0))
    tl.store(teacher_logprob_N + row, _log_prob(chosen_t, top_t, sum_t))
    tl.store(kl_N + row, kl)
