"""Examples, and the micro-batches that they are scored in.

The sequences of a micro-batch follow one another without padding; `packing` gives them to a model.

Axes: N sequences, L tokens of all sequences, T their response tokens, both in order.
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
class Packed:
    """Token ids of prompts and responses, one sequence after another.

    `positions_T` index the tokens whose hidden states predict `tokens_T`.
    """

    ids_L: Tensor
    lengths: tuple[int, ...]
    positions_T: Tensor
    tokens_T: Tensor

    def to(self, device: torch.device) -> "Packed":
        """Return the same on another device."""
        moved = (each.to(device) for each in (self.positions_T, self.tokens_T))
        return Packed(self.ids_L.to(device), self.lengths, *moved)


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Packed:
    """Put prompts and their responses into one row.

    Raises:
        TrainingError: a prompt or a response is empty.
    """
    prompt_N, response_N = _lengths(prompts), _lengths(responses)
    if not (prompt_N.all() and response_N.all()):
        raise TrainingError(
            "a prompt or a response has no tokens",
            got=f"sequence {int(np.argmin(np.minimum(prompt_N, response_N)))} of the batch",
        )
    pieces = chain.from_iterable(zip(prompts, responses, strict=True))
    ids_L = np.fromiter(chain.from_iterable(pieces), np.int64)
    parts = np.stack([prompt_N, response_N], 1)
    is_response_L = np.repeat(np.tile([False, True], len(parts)), parts.flatten())
    return Packed(
        torch.from_numpy(ids_L),
        tuple(parts.sum(1).tolist()),
        torch.from_numpy(np.flatnonzero(is_response_L) - 1),
        torch.from_numpy(ids_L[is_response_L]),
    )


def student_side(examples: Sequence[Example]) -> Packed:
    """Pack the examples with the student's prompts."""
    return pack([e.prompt_ids for e in examples], [e.response_ids for e in examples])


def teacher_side(examples: Sequence[Example]) -> Packed:
    """Pack the examples with the teacher's prompts.

    Raises:
        TrainingError: an example has no teacher prompt.
    """
    missing = [e.rollout_id for e in examples if e.teacher_prompt_ids is None]
    if missing:
        raise TrainingError("distillation needs a teacher prompt", got=f"none for {missing}")
    return pack([e.teacher_prompt_ids or () for e in examples], [e.response_ids for e in examples])


def require_same_response(student: Packed, teacher: Packed) -> None:
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


def microbatches(
    examples: Sequence[Example], budget: int, *, padded: bool = True, ranks: int = 1
) -> Iterator[list[int]]:
    """Yield indices of the examples in groups of similar length, the longest first.

    A group is dealt to the ranks in turn: `group[rank::ranks]` is a rank's share. It is full when
    the larger side of a share would exceed the budget of positions (a single example may). Where
    these are `padded`, to the longest sequence of a side, it is also full when a share is not small
    and more than `MAX_PADDING` of it would be padding.
    """
    sides = np.stack(lengths(examples), 1)
    group: list[int] = []
    widest, used = np.zeros((ranks, 2), np.int64), np.zeros((ranks, 2), np.int64)
    for index in np.argsort(-sides.sum(1), kind="stable").tolist():
        rank, dealt = len(group) % ranks, len(group) // ranks
        tokens = used[rank] + sides[index]
        wider = np.maximum(widest[rank], sides[index])
        area = wider * (dealt + 1) if padded else tokens
        padding = 1 - tokens.sum() / area.sum()
        small = used[rank].sum() < SMALL
        if dealt and (area.max() > budget or (not small and padding > MAX_PADDING)):
            yield group
            group, rank, tokens, wider = [], 0, sides[index], sides[index]
            widest[:], used[:] = 0, 0
        group.append(index)
        widest[rank], used[rank] = wider, tokens
    if group:
        yield group


def padding_share(examples: Sequence[Example], groups: Sequence[Sequence[int]]) -> float:
    """Return the share of positions in all micro-batches, on both sides, that padding adds."""
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
