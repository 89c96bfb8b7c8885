"""From hidden states to a loss, exact over the vocabulary, in memory independent of T.

Hidden states go through the head in chunks of rows. A chunk's logits live only until its loss, its
diagnostics and the analytic gradient by its hidden states are known, so autograd never keeps a
[T, V] tensor, and the gradient needs no second projection. On a GPU a kernel reads the logits of a
chunk and writes its gradient (`kernels`); elsewhere, and for other losses, PyTorch does.

Axes: T response tokens, N tokens of a chunk, V vocabulary, D hidden. Everything is in nats.
"""

# Memory for T = 16,384 tokens, V = 152k, D = 2,048 on a GPU:
#
#   hidden_TD [T, D] 0.13 GiB, and as much for its gradient: the only tensors with T rows
#     └─ chunk of N = 2^26 / V rows, a multiple of 128: 384
#          ├─ student's logits_NV ─┐
#          └─ teacher's logits_NV ─┴─► kernel ─► loss_N, scores, gradient_NV
#                                                  └─► hidden gradient of these N rows
#
# A float32 [N, V] buffer has 0.22 GiB, and the next chunk reuses it: the two of logits, and one of
# half the size for a bfloat16 gradient. Other losses make log_q_NV, q_NV, log_t_NV, t_NV of the
# logits, about six buffers, and a loss function may overwrite what it gets. The full logits would
# be 9.3 GiB per [T, V] tensor, several of them at once.

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from sdcore.training.divergences import Pair, Whole

FLOOR = -1e4  # nats; lowest log-prob, that of masked tokens: 0 · log 0 = 0 and no NaN follow
MIN_ROWS = 128  # fewer, and a chunk's matrix product is bound by reading the head; a GPU's tile
ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}  # of a [N, V] buffer: near the cache, or enough work
HELD = 1 << 29  # elements of the gradients that a GPU holds for one product with a trained head


@dataclass(frozen=True)
class Head:
    """Logits = softcap(scale · (hidden · weightᵀ + bias)); softcap(x) = cap · tanh(x / cap)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_ND: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits [N, V], in float32 or wider; in the buffer where no conversion is needed."""
        if hidden_ND.device.type != "cpu":
            logits_NV = _product(hidden_ND, self.weight_VD.T)
        elif out is None or out.dtype != hidden_ND.dtype:
            logits_NV = (self.weight_VD @ hidden_ND.mT).mT
        else:
            logits_NV = torch.mm(self.weight_VD, hidden_ND.T, out=out.T).T
        logits_NV = logits_NV.to(_wide(hidden_ND))
        if self.bias_V is not None:
            logits_NV = logits_NV + self.bias_V
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = self.softcap * (logits_NV / self.softcap).tanh()
        return logits_NV

    @property
    def linear(self) -> bool:
        """Neither scale nor soft cap comes after the matrix product."""
        return self.scale == 1.0 and self.softcap is None

    def pull_back(self, gradient_NV: Tensor, hidden_ND: Tensor) -> Tensor:
        """Gradient by the matrix product, from the gradient by the logits (overwritten)."""
        if self.softcap is not None:
            gradient_NV.mul_(1 - (self.logits(hidden_ND) / self.softcap).square_())
        if self.scale != 1.0:
            gradient_NV.mul_(self.scale)
        return gradient_NV.to(self.weight_VD.dtype)


@dataclass(frozen=True)
class HeadInput:
    """Hidden states [T, D] and head of one model; a teacher's logits are a weighted sum of these.

    `share` is the weight of this model's logits in that sum.
    """

    hidden_TD: Tensor
    head: Head
    share: float = 1.0


class TokenScores(NamedTuple):
    """Diagnostics of each response token [T], in nats, detached, at temperature 1.

    `kl_T` is the forward KL, teacher to student, over the whole vocabulary. Without a teacher
    `teacher_logprob_T` and `kl_T` are None.
    """

    student_logprob_T: Tensor
    entropy_T: Tensor
    teacher_logprob_T: Tensor | None = None
    kl_T: Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the scores of consecutive tokens."""
        return cls(
            torch.cat([part.student_logprob_T for part in parts]),
            torch.cat([part.entropy_T for part in parts]),
            cat_or_none([part.teacher_logprob_T for part in parts]),
            cat_or_none([part.kl_T for part in parts]),
        )


@dataclass(frozen=True)
class Chunk:
    """Some consecutive response tokens; the loss that gets it may overwrite its buffers.

    Without a teacher there is no `pair`.
    """

    log_q_NV: Tensor
    q_NV: Tensor
    pair: Pair | None
    tokens_N: Tensor
    rows: slice
    scores: TokenScores  # [N] each

    def tempered(self, temperature: float) -> "Chunk":
        """The distributions with their logits divided by the temperature; the scores stay."""
        if temperature == 1.0:
            return self
        if self.pair is None:
            log_q_NV = torch.log_softmax(self.log_q_NV / temperature, -1)
            return replace(self, log_q_NV=log_q_NV, q_NV=log_q_NV.exp())
        pair = self.pair.tempered(temperature)
        return replace(self, log_q_NV=pair.log_q_NV, q_NV=pair.q_NV, pair=pair)


ChunkLoss = Callable[[Chunk], tuple[Tensor, Tensor]]
"""Map a chunk to the losses [N] and their gradients by the student's logits [N, V].

With an attribute `whole`, that divergence is the loss, and a GPU computes it by a kernel.
"""


def chunked_loss(
    student: HeadInput,
    teacher: Sequence[HeadInput],
    tokens_T: Tensor,
    weights_T: Tensor,
    chunk_loss: ChunkLoss,
) -> tuple[Tensor, Tensor, TokenScores]:
    """Σ_t weight_t · loss_t, differentiable by the student's hidden states and head.

    Args:
        student: hidden states that predict the tokens, and the head.
        teacher: head inputs whose logits add up to the teacher's; empty without a teacher.
        tokens_T: the response tokens.
        weights_T: weights of the tokens; the normalisation of the loss is in them.
        chunk_loss: see `sdcore.training.losses`.

    Returns:
        The weighted sum, each token's unweighted loss [T] (detached), and the diagnostics.
    """
    student, teacher = _autocast(student), [_autocast(each) for each in teacher]
    with torch.autocast(student.hidden_TD.device.type, enabled=False):
        loss, loss_T, *scores = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            student.hidden_TD, student.head.weight_VD, student.head.bias_V,
            student.head, teacher, tokens_T, weights_T, chunk_loss,
        )  # fmt: skip
    return loss, loss_T, TokenScores(*scores)


@torch.no_grad()
def token_scores(student: HeadInput, teacher: Sequence[HeadInput], tokens_T: Tensor) -> TokenScores:
    """Return the diagnostics without a loss."""
    student, teacher = _autocast(student), [_autocast(each) for each in teacher]
    with torch.autocast(student.hidden_TD.device.type, enabled=False):
        spans = _spans(tokens_T, len(student.head.weight_VD))
        pool = _Pool(student, spans)
        if teacher and has_kernels(student):
            return TokenScores.cat([_kernel_scores(student, teacher, tokens_T, s) for s in spans])
        return TokenScores.cat(
            [_chunk(student, teacher, tokens_T, rows, pool).scores for rows in spans]
        )


def has_kernels(student: HeadInput) -> bool:
    """Return whether the kernels can be used: on a GPU, where Triton is, up to float32."""
    hidden_TD = student.hidden_TD
    on_gpu = hidden_TD.device.type == "cuda" and find_spec("triton") is not None
    return on_gpu and _wide(hidden_TD) == torch.float32


def _whole(chunk_loss: ChunkLoss, student: HeadInput, teacher: Sequence[HeadInput]) -> Whole | None:
    """The divergence that a kernel computes in place of the loss; None where PyTorch has to."""
    whole: Whole | None = getattr(chunk_loss, "whole", None)
    return whole if teacher and has_kernels(student) else None


class _ChunkedLoss(torch.autograd.Function):
    """Makes the gradients in the forward pass, where the logits are; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        teacher: Sequence[HeadInput],
        tokens_T: Tensor,
        weights_T: Tensor,
        chunk_loss: ChunkLoss,
    ) -> tuple[Tensor, ...]:
        ctx.dtype = hidden_TD.dtype
        ctx.gradients = [
            None if tensor is None or not needed else torch.zeros_like(tensor, dtype=_wide(tensor))
            for tensor, needed in zip((hidden_TD, weight_VD, bias_V), ctx.needs_input_grad)
        ]
        student = HeadInput(hidden_TD, head)
        whole = _whole(chunk_loss, student, teacher)
        hidden, weight, bias = ctx.gradients
        # A product of few rows with a [V, D] sum takes a GPU as long to read and write that sum as
        # to compute: the gradients of many chunks are held for one product.
        hold = whole is not None and head.linear and weight is not None
        spans = _spans(tokens_T, len(weight_VD))
        pool = _Pool(student, spans)

        def scored(rows: slice, space_NV: Tensor | None = None) -> tuple[Tensor, TokenScores]:
            """A chunk's loss and diagnostics; a function, so that its buffers die with it."""
            if whole is not None:
                loss_N, gradient_NV, scores = _by_kernel(
                    student, teacher, tokens_T, rows, whole, space_NV
                )
            else:
                chunk = _chunk(student, teacher, tokens_T, rows, pool)
                scores = chunk.scores
                loss_N, gradient_NV = chunk_loss(chunk)
            gradient_NV = head.pull_back(gradient_NV, hidden_TD[rows])
            now = (hidden, None if hold else weight, bias)
            _accumulate(now, gradient_NV, student, weights_T[rows, None], rows)
            return loss_N, scores

        def held(block: Sequence[slice]) -> list[tuple[Tensor, TokenScores]]:
            """The same of several chunks, and the gradient by the head of all of them at once."""
            rows = slice(block[0].start, min(block[-1].stop, len(tokens_T)))
            held_MV = hidden_TD.new_empty(_length(rows), len(weight_VD))
            spaces = torch.split(held_MV, _length(block[0]))
            made = [scored(*each) for each in zip(block, spaces, strict=True)]
            _accumulate((None, weight, None), held_MV, student, weights_T[rows, None], rows)
            return made

        if hold:
            results = [each for block in _blocks(spans, len(weight_VD)) for each in held(block)]
        else:
            results = [scored(rows) for rows in spans]
        losses, parts = zip(*results, strict=True)
        loss_T = torch.cat(losses)
        outputs = (loss_T, *(each for each in TokenScores.cat(parts) if each is not None))
        ctx.mark_non_differentiable(*outputs)
        return (loss_T @ weights_T.to(loss_T.dtype), *outputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients: Sequence[Tensor | None] = ctx.gradients
        if slope.device.type == "cpu" and float(slope) == 1.0:  # a GPU would be waited for
            ctx.gradients = ()  # handed over rather than copied; a second backward fails
            scaled = [None if each is None else each.to(ctx.dtype) for each in gradients]
        else:
            scaled = [
                None if each is None else _times(each, slope, ctx.dtype) for each in gradients
            ]
        return *scaled, *[None] * 5


class _Pool:
    """[N, V] buffers that all chunks of a call share: fresh memory costs a CPU a lot.

    They lie with the vocabulary outermost, in which a CPU's products are a third faster. Elsewhere
    the allocator does as well, and there are none.
    """

    def __init__(self, student: HeadInput, spans: Sequence[slice]) -> None:
        hidden_TD, self._vocabulary = student.hidden_TD, len(student.head.weight_VD)
        self._enabled = hidden_TD.device.type == "cpu" and bool(spans)
        rows = min(len(hidden_TD), spans[0].stop) if spans else 0
        self._sample = hidden_TD.new_empty(0, dtype=_wide(hidden_TD))
        self._size, self._buffers = rows * self._vocabulary, list[Tensor]()
        self._taken = self._rows = 0

    def start(self, rows: int) -> None:
        """Free all buffers for a chunk of this many rows."""
        self._taken, self._rows = 0, rows

    def take(self) -> Tensor | None:
        """Return an uninitialised buffer."""
        if not self._enabled:
            return None
        if self._taken == len(self._buffers):
            self._buffers.append(self._sample.new_empty(self._size))
        self._taken += 1
        flat = self._buffers[self._taken - 1][: self._vocabulary * self._rows]
        return flat.view(self._vocabulary, self._rows).T


def _spans(tokens_T: Tensor, vocabulary: int) -> list[slice]:
    """Chunks whose buffers stay small and whose products are busy."""
    device = tokens_T.device.type
    affordable = ELEMENTS[device] // vocabulary
    if device == "cuda":
        affordable -= affordable % MIN_ROWS
    step = max(MIN_ROWS, affordable)
    return [slice(start, start + step) for start in range(0, len(tokens_T), step)]


def _blocks(spans: Sequence[slice], vocabulary: int) -> list[Sequence[slice]]:
    """Cut chunks into blocks of about as many each, whose gradients are held together."""
    most = max(1, HELD // (vocabulary * _length(spans[0])))
    count = math.ceil(len(spans) / most)
    size = math.ceil(len(spans) / count)
    return [spans[start : start + size] for start in range(0, len(spans), size)]


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _chunk(
    student: HeadInput, teacher: Sequence[HeadInput], tokens_T: Tensor, rows: slice, pool: _Pool
) -> Chunk:
    tokens_N = tokens_T[rows]
    pool.start(len(tokens_N))
    log_q_NV, q_NV = _distribution(student.head.logits(student.hidden_TD[rows], pool.take()), pool)
    logprob_N = log_q_NV.gather(1, tokens_N[:, None])[:, 0]
    spare = pool.take()
    entropy_N = -torch.mul(q_NV, log_q_NV, out=spare).sum(1)
    if not teacher:
        return Chunk(log_q_NV, q_NV, None, tokens_N, rows, TokenScores(logprob_N, entropy_N))
    log_t_NV, t_NV = _distribution(_teacher_logits(teacher, rows, pool.take()), pool)
    pair = Pair(log_q_NV, q_NV, t_NV, log_t_NV.sub_(log_q_NV))
    advantage_N = pair.log_ratio_NV.gather(1, tokens_N[:, None])[:, 0]
    kl_N = torch.mul(t_NV, pair.log_ratio_NV, out=spare).sum(1)
    scores = TokenScores(logprob_N, entropy_N, logprob_N + advantage_N, kl_N)
    return Chunk(log_q_NV, q_NV, pair, tokens_N, rows, scores)


def _by_kernel(
    student: HeadInput,
    teacher: Sequence[HeadInput],
    tokens_T: Tensor,
    rows: slice,
    whole: Whole,
    gradient_NV: Tensor | None,
) -> tuple[Tensor, Tensor, TokenScores]:
    from sdcore.training import kernels  # noqa: PLC0415 - Triton is there for GPUs only

    head = student.head
    logits_NV = head.logits(student.hidden_TD[rows]).contiguous()
    teacher_NV = _teacher_logits(teacher, rows)
    if gradient_NV is None:
        # A head that does more to its logits passes the gradient on before it is rounded.
        dtype = head.weight_VD.dtype if head.linear else torch.float32
        wide = dtype == logits_NV.dtype
        gradient_NV = logits_NV if wide else torch.empty_like(logits_NV, dtype=dtype)
    loss_N, scores = kernels.divergence(logits_NV, teacher_NV, tokens_T[rows], whole, gradient_NV)
    return loss_N, gradient_NV, scores


def _kernel_scores(
    student: HeadInput, teacher: Sequence[HeadInput], tokens_T: Tensor, rows: slice
) -> TokenScores:
    from sdcore.training import kernels  # noqa: PLC0415 - Triton is there for GPUs only

    logits_NV = student.head.logits(student.hidden_TD[rows]).contiguous()
    teacher_NV = _teacher_logits(teacher, rows)
    return kernels.divergence(logits_NV, teacher_NV, tokens_T[rows], Whole("forward_kl"), None)[1]


def _distribution(logits_NV: Tensor, pool: _Pool) -> tuple[Tensor, Tensor]:
    """Return log-probs, at least FLOOR and in place of the logits if that is faster, and probs.

    A token with a logit of -inf has probability 0. If one side masks a token and the other does
    not, a divergence counts it as FLOOR: finite, and far too large to be overlooked.
    """
    if logits_NV.is_contiguous():
        log_p_NV = torch.log_softmax(logits_NV, 1).clamp_(min=FLOOR)
        return log_p_NV, log_p_NV.exp()
    logits_NV.sub_(logits_NV.amax(1, keepdim=True))
    p_NV = torch.exp(logits_NV, out=pool.take())
    total_N1 = p_NV.sum(1, keepdim=True)
    return logits_NV.sub_(total_N1.log()).clamp_(min=FLOOR), p_NV.div_(total_N1)


def _teacher_logits(inputs: Sequence[HeadInput], rows: slice, out: Tensor | None = None) -> Tensor:
    first, *rest = inputs
    logits_NV = first.head.logits(first.hidden_TD[rows], out)
    if first.share != 1.0:
        logits_NV.mul_(first.share)
    for each in rest:
        logits_NV.add_(each.head.logits(each.hidden_TD[rows]), alpha=each.share)
    return logits_NV


def _accumulate(
    gradients: Sequence[Tensor | None],
    gradient_NV: Tensor,
    student: HeadInput,
    weight_N1: Tensor,
    rows: slice,
) -> None:
    hidden, weight, bias = gradients
    gpu = gradient_NV.device.type != "cpu"
    if hidden is not None and gpu:
        hidden[rows] = _product(gradient_NV, student.head.weight_VD) * weight_N1
    elif hidden is not None:
        hidden[rows] = (student.head.weight_VD.T @ gradient_NV.T).T * weight_N1
    if weight is not None:
        weighted_ND = (student.hidden_TD[rows] * weight_N1).to(gradient_NV.dtype)
        if gpu and weight.dtype != gradient_NV.dtype:
            # The first rows overwrite the sum, which saves a GPU from reading its zeros.
            torch.addmm(
                weight, gradient_NV.T, weighted_ND, out_dtype=weight.dtype,
                beta=int(rows.start > 0), out=weight,
            )  # fmt: skip
        elif weight.dtype == gradient_NV.dtype:
            weight.addmm_(gradient_NV.T, weighted_ND)  # no [V, D] temporary
        else:
            weight += gradient_NV.T @ weighted_ND
    if bias is not None:
        bias += (gradient_NV * weight_N1).sum(0)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product on a GPU, of bfloat16 factors in the float32 in which it is added up."""
    if left.dtype == _wide(left):
        return left @ right
    return torch.mm(left, right, out_dtype=_wide(left))


def _times(gradient: Tensor | None, slope: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A gradient times the slope of what the loss goes into, rounded in the same pass."""
    if gradient is None:
        return None
    return torch.mul(gradient, slope, out=torch.empty_like(gradient, dtype=dtype))


def cat_or_none(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate tensors; None where one is missing."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if len(present) == len(tensors) else None


def _autocast(given: HeadInput) -> HeadInput:
    """Return it in the type that autocast asks for; gradients keep the type of the weights."""
    device = given.hidden_TD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = given.head.weight_VD.dtype
    head, bias_V = given.head, given.head.bias_V
    head = replace(
        head,
        weight_VD=head.weight_VD.to(dtype),
        bias_V=None if bias_V is None else bias_V.to(dtype),
    )
    return replace(given, hidden_TD=given.hidden_TD.to(dtype), head=head)


def _wide(tensor: Tensor) -> torch.dtype:
    """Type for logits and sums: float32, or float64 for float64."""
    return torch.promote_types(torch.float32, tensor.dtype)
