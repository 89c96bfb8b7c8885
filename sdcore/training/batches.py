"""Examples, and the padded micro-batches that they are scored in.

Sequences are padded on the right. Under causal attention no real token sees the padding, so no
attention mask is needed, and the response tokens are picked out by their flat positions.

Axes: N sequences, L positions, T response tokens of all sequences, in order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from sdcore.errors import TrainingError
from sdcore.traces import Region

MAX_PADDING = 0.08  # share of a micro-batch's positions, unless it is small
SMALL = 1024  # tokens; below this a further micro-batch costs more than padding


@dataclass(frozen=True)
class Example:
    """One rollout to learn from; the same response ids are scored by student and teacher.

    `teacher_prompt_ids` are needed for distillation, `advantage` for GRPO. `sampled_logprobs` are
    the sampler's log-probs of the response at temperature 1, `old_logprobs` those at the sampling
    temperature where that is another. `correct` and `regions`, where each response token is, are
    for weightings; no regions where nobody knows the first error of a wrong rollout.
    `token_weights` are the tokens' own weights in the loss, which a weighting multiplies.
    """

    rollout_id: str
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    teacher_prompt_ids: Sequence[int] | None = None
    advantage: float | None = None
    sampled_logprobs: Sequence[float] | None = None
    old_logprobs: Sequence[float] | None = None
    correct: bool = True
    regions: Sequence[Region] | None = None
    token_weights: Sequence[float] | None = None


@dataclass(frozen=True)
class Padded:
    """Token ids of prompts and responses; `positions_T` index hidden states that predict tokens."""

    ids_NL: Tensor
    positions_T: Tensor
    tokens_T: Tensor

    def to(self, device: torch.device) -> "Padded":
        """Return the same on another device."""
        return Padded(self.ids_NL.to(device), self.positions_T.to(device), self.tokens_T.to(device))


def pad(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Padded:
    """Put prompts and their responses into one rectangle.

    Raises:
        TrainingError: a prompt or a response is empty.
    """
    prompt_N, response_N = _lengths(prompts), _lengths(responses)
    if not (prompt_N.all() and response_N.all()):
        raise TrainingError(
            "a prompt or a response has no tokens",
            got=f"sequence {int(np.argmin(np.minimum(prompt_N, response_N)))} of the batch",
        )
    total_N = prompt_N + response_N
    column_L = np.arange(total_N.max())
    ids_NL = np.zeros((len(total_N), len(column_L)), np.int64)
    pieces = chain.from_iterable(zip(prompts, responses, strict=True))
    ids_NL[column_L < total_N[:, None]] = np.fromiter(chain.from_iterable(pieces), np.int64)
    is_response_NL = (column_L >= prompt_N[:, None]) & (column_L < total_N[:, None])
    return Padded(
        torch.from_numpy(ids_NL),
        torch.from_numpy(np.flatnonzero(is_response_NL) - 1),
        torch.from_numpy(ids_NL[is_response_NL]),
    )


def student_side(examples: Sequence[Example]) -> Padded:
    """Pad the examples with the student's prompts."""
    return pad([e.prompt_ids for e in examples], [e.response_ids for e in examples])


def teacher_side(examples: Sequence[Example]) -> Padded:
    """Pad the examples with the teacher's prompts.

    Raises:
        TrainingError: an example has no teacher prompt.
    """
    missing = [e.rollout_id for e in examples if e.teacher_prompt_ids is None]
    if missing:
        raise TrainingError("distillation needs a teacher prompt", got=f"none for {missing}")
    return pad([e.teacher_prompt_ids or () for e in examples], [e.response_ids for e in examples])


def require_same_response(student: Padded, teacher: Padded) -> None:
    """Refuse to compare distributions over different tokens.

    Raises:
        TrainingError: the two sides do not score the same response ids.
    """
    if not torch.equal(student.tokens_T, teacher.tokens_T):
        raise TrainingError(
            "student and teacher score different tokens",
            got=f"{len(student.tokens_T)} and {len(teacher.tokens_T)} response tokens",
            expected="the same ids",
        )


def require_whole(examples: Sequence[Example], limit: int | None) -> None:
    """Refuse examples that the model could only see truncated.

    Raises:
        TrainingError: prompt and response are longer than the model's positions.
    """
    student_N, teacher_N = lengths(examples)
    longest_N = np.maximum(student_N, teacher_N)
    if limit is not None and longest_N.max() > limit:
        raise TrainingError(
            "an example is longer than the model's context",
            got=f"{longest_N.max()} tokens in {examples[int(longest_N.argmax())].rollout_id}",
            expected=f"at most {limit}",
            fix="lower sampling.max_new_tokens, or shorten the context or the prompt",
        )


def lengths(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens [N] of each example for the student and the teacher (0 without one)."""
    response_N = _lengths([e.response_ids for e in examples])
    teacher_N = _lengths([e.teacher_prompt_ids or () for e in examples])
    student_N = response_N + _lengths([e.prompt_ids for e in examples])
    return student_N, np.where(teacher_N > 0, teacher_N + response_N, 0)


def microbatches(examples: Sequence[Example], budget: int) -> Iterator[list[int]]:
    """Yield indices of the examples in groups of similar length, the longest first.

    A group is full when its larger side would exceed the budget of padded positions (a single
    example may), or when it is not small and more than `MAX_PADDING` of it would be padding.
    """
    sides = np.stack(lengths(examples), 1)
    group: list[int] = []
    widest, used = np.zeros(2, np.int64), 0
    for index in np.argsort(-sides.sum(1), kind="stable").tolist():
        wider, area = np.maximum(widest, sides[index]), len(group) + 1
        padding = 1 - (used + sides[index].sum()) / (wider.sum() * area)
        if group and (wider.max() * area > budget or (used >= SMALL and padding > MAX_PADDING)):
            yield group
            group, used, wider = [], 0, sides[index]
        group.append(index)
        widest, used = wider, used + int(sides[index].sum())
    if group:
        yield group


def padding_share(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> float:
    """Return the share of padded positions in all micro-batches, student's and teacher's."""
    sides = np.stack(lengths(examples), 1)
    area = sum(int(sides[group].max(0).sum()) * len(group) for group in groups)
    return 1 - int(sides.sum()) / area


def loss_shares(weights: Sequence[Tensor], by_sequence: bool) -> list[Tensor]:
    """Return each token's share in the loss of a batch, from the weights [T] of each example.

    With them the loss is the weighted mean over all tokens, Σ w L / Σ w, or, by sequence, the mean
    of the weighted means over those sequences that have a weight above 0. The shares sum to 1, or
    are 0 where all weights are.
    """
    sum_N = torch.stack([each.sum() for each in weights])
    total_N = sum_N * (sum_N > 0).sum() if by_sequence else sum_N.sum().expand(len(weights))
    return [w / total if total > 0 else w for w, total in zip(weights, total_N, strict=True)]


def advantages(examples: Sequence[Example]) -> Tensor:
    """Return the advantage [T] of each response token: its rollout's.

    Raises:
        TrainingError: an example has none.
    """
    missing = [e.rollout_id for e in examples if e.advantage is None]
    if missing:
        raise TrainingError("GRPO needs an advantage", got=f"none for {missing}")
    advantage_N = torch.tensor([e.advantage for e in examples], dtype=torch.float32)
    return advantage_N.repeat_interleave(_response_lengths(examples))


def sampled_logprobs(examples: Sequence[Example]) -> Tensor | None:
    """Return each response token's log-prob [T] by its sampler; None if an example lacks them."""
    return _stored([e.sampled_logprobs for e in examples])


def old_logprobs(examples: Sequence[Example]) -> Tensor | None:
    """Return the same at the sampling temperature."""
    return _stored([e.old_logprobs for e in examples])


def _stored(logprobs: Sequence[Sequence[float] | None]) -> Tensor | None:
    there = [each for each in logprobs if each is not None]
    return _floats(there) if len(there) == len(logprobs) else None


def _response_lengths(examples: Sequence[Example]) -> Tensor:
    return torch.from_numpy(_lengths([e.response_ids for e in examples]))


def _floats(sequences: Sequence[Sequence[float]]) -> Tensor:
    return torch.from_numpy(np.fromiter(chain.from_iterable(sequences), np.float32))


def _lengths(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(map(len, sequences), np.int64, len(sequences))
