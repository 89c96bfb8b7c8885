"""Frozen rollouts under several contexts: score the student once, the teacher once per context.

Before any training student and teacher are the same weights; only their prompts differ. The
scores are those of the trainer's first step, from the same batches, head inputs and projection.

Axes: N rollouts of a batch, T their response tokens, S signals.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from sdcore.errors import TrainingError
from sdcore.models.policies import Policy, positions
from sdcore.training import batches, packing
from sdcore.training.batches import Example, Packed
from sdcore.training.head import head_input, require_exact_head, unwrap_peft
from sdcore.training.projection import HeadInput, token_scores
from sdcore.training.results import TokenSignals
from sdcore.training.trainer import require_identity

Prompt = Sequence[int]


@torch.no_grad()
def context_signals(
    policy: Policy,
    rollouts: Sequence[Example],
    prompts: Mapping[str, Sequence[Prompt | None]],
    tokens_per_batch: int,
) -> Iterator[tuple[str, int, TokenSignals]]:
    """The signals of each rollout under each context that it has: context, index, signals.

    Args:
        policy: the weights of student and teacher alike.
        rollouts: with the student's prompt and the response.
        prompts: by context, the teacher's prompt for each rollout; None where it has none.
        tokens_per_batch: bound on the padded positions of a batch.

    Raises:
        TrainingError: a prompt and its response do not fit into the model's positions, or a
            teacher with the student's own prompt does not give the student's distribution.
    """
    require_exact_head(policy)
    bare = unwrap_peft(policy)
    longest = [replace(r, teacher_prompt_ids=_longest(i, prompts)) for i, r in enumerate(rollouts)]
    batches.require_whole(longest, positions(bare.config))
    packing.turn_on(bare)
    padded = not packing.is_on(bare)
    for group in batches.microbatches(longest, tokens_per_batch, padded=padded):
        student = batches.student_side([rollouts[index] for index in group]).to(policy.device)
        seen = head_input(policy, student)
        for context, prompts_N in prompts.items():
            chosen = [
                replace(rollouts[index], teacher_prompt_ids=prompts_N[index]) for index in group
            ]
            having = [index for index in group if prompts_N[index] is not None]
            found = _scored(policy, student, seen, chosen)
            for index, signals in zip(having, found, strict=True):
                yield context, index, signals


def _longest(index: int, prompts: Mapping[str, Sequence[Prompt | None]]) -> Prompt:
    return max((prompts_N[index] or () for prompts_N in prompts.values()), key=len, default=())


def _scored(
    policy: Policy, student: Packed, seen: HeadInput, batch: Sequence[Example]
) -> list[TokenSignals]:
    """Signals of those of a batch that have a teacher prompt, in order."""
    having = [each for each in batch if each.teacher_prompt_ids is not None]
    if not having:
        return []
    length_N = torch.tensor([len(each.response_ids) for each in batch])
    having_N = torch.tensor([each.teacher_prompt_ids is not None for each in batch])
    rows_T = having_N.repeat_interleave(length_N).to(policy.device)
    own = replace(student, tokens_T=student.tokens_T[rows_T])
    teacher = batches.teacher_side(having).to(policy.device)
    batches.require_same_response(own, teacher)
    mine = replace(seen, hidden_TD=seen.hidden_TD[rows_T])
    scores = token_scores(mine, [head_input(policy, teacher)], own.tokens_T)
    assert scores.teacher_logprob_T is not None
    signals = TokenSignals.of(scores, scores.teacher_logprob_T - scores.student_logprob_T)
    assert signals.kl is not None
    if not (signals.kl + signals.entropy).isfinite().all():
        raise TrainingError(
            "the model's entropy or KL is not a number",
            where=f"rollouts {', '.join(each.rollout_id for each in having)}",
            fix="its logits are infinite or not numbers: check the model's weights",
        )
    by_example = signals.split(length_N[having_N].tolist())
    for example, own_signals in zip(having, by_example, strict=True):
        if example.teacher_prompt_ids == example.prompt_ids and own_signals.kl is not None:
            require_identity(own_signals.kl, policy.dtype)  # the null check
    return by_example
