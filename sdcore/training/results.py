"""Combine micro-batches: the signals of each example, and the update as a whole.

Axes: T response tokens of a micro-batch, S signals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from sdcore.errors import TrainingError
from sdcore.training import batches
from sdcore.training.batches import Example
from sdcore.training.projection import TokenScores, cat_or_none

_COLUMNS = (
    "loss", "grad_norm", "learning_rate", "rollouts", "tokens", "mean_length", "entropy",
    "first_token_kl", "logprob_drift", "logprob_drift_max", "padding_share", "weightless",
    "seconds",
)  # fmt: skip
FIRST_TOKEN_RATIO = 10.0  # see `require_paired_start`
MISMATCH = {torch.float32: 0.01, torch.bfloat16: 0.2}  # nats; see `require_agreement`


class TokenSignals(NamedTuple):
    """Signals of response tokens, each [T] on the CPU, in nats, by the weights before the step.

    `advantage` is teacher minus student log-prob or, for GRPO, the rollout's advantage, and 1 in a
    warm-up; `kl` is the forward KL over the vocabulary. Without a teacher `teacher_logprob` and
    `kl` are None. `weight` is that of the token in the loss, before normalisation; None where
    nothing is trained.
    """

    student_logprob: Tensor
    entropy: Tensor
    advantage: Tensor
    teacher_logprob: Tensor | None = None
    kl: Tensor | None = None
    weight: Tensor | None = None

    @classmethod
    def of(cls, scores: TokenScores, advantage_T: Tensor) -> Self:
        """Signals from the diagnostics of a pass, as float32 on the CPU."""
        teacher_T, kl_T = scores.teacher_logprob_T, scores.kl_T
        return cls(
            scores.student_logprob_T.float().cpu(),
            scores.entropy_T.float().cpu(),
            advantage_T.float().cpu(),
            None if teacher_T is None else teacher_T.float().cpu(),
            None if kl_T is None else kl_T.float().cpu(),
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the signals of consecutive tokens."""
        return cls(
            torch.cat([part.student_logprob for part in parts]),
            torch.cat([part.entropy for part in parts]),
            torch.cat([part.advantage for part in parts]),
            cat_or_none([part.teacher_logprob for part in parts]),
            cat_or_none([part.kl for part in parts]),
            cat_or_none([part.weight for part in parts]),
        )

    def split(self, lengths: Sequence[int]) -> list[Self]:
        """Cut the signals of a batch into those of its examples, `lengths` tokens each."""
        columns = [
            [None] * len(lengths) if row_T is None else torch.split(row_T, list(lengths))
            for row_T in self
        ]
        return [type(self)(*rows) for rows in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Update:
    """Figures of one optimizer step; `entropy` and `kl` are means over response tokens.

    `loss` is the mean by the weights of the tokens; `weightless` counts the rollouts whose weights
    are all 0, so that they teach nothing. `grad_norm` is before clipping, `first_token_kl` the mean
    KL of the first token of each response (None without a teacher), `logprob_drift` the mean
    |sampler − trainer| log-prob and `logprob_drift_max` the largest (None without stored
    log-probs), `padding_share` that of padded positions, both sides counted.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    rollouts: int
    tokens: int
    mean_length: float
    entropy: float
    kl: float | None
    first_token_kl: float | None
    logprob_drift: float | None
    logprob_drift_max: float | None
    padding_share: float
    weightless: int
    seconds: float
    signals: list[TokenSignals]

    @property
    def columns(self) -> dict[str, Any]:
        """Columns of the table `updates` that are known here."""
        return {name: getattr(self, name) for name in _COLUMNS}


@dataclass(frozen=True)
class Pass:
    """One micro-batch: its examples, its share of the loss, its tokens' losses and signals.

    `loss_T` is empty where no loss was computed.
    """

    group: list[int]
    loss: float
    loss_T: Tensor
    signals: TokenSignals


def update_of(
    examples: Sequence[Example],
    passes: Sequence[Pass],
    weights: Sequence[Tensor],
    *,
    grad_norm: float,
    learning_rate: float,
    padded: bool,
    seconds: float,
) -> Update:
    """Combine the passes over all examples, and the weights [T] of each one, into one update."""
    signals = TokenSignals.cat([each.signals for each in passes])
    tokens = len(signals.student_logprob)
    groups = [each.group for each in passes]
    order = [examples[index] for group in groups for index in group]
    sampled_T = batches.sampled_logprobs(order)
    drift_T = None if sampled_T is None else (signals.student_logprob - sampled_T).abs()
    by_example = [
        each._replace(weight=weight_T)
        for each, weight_T in zip(signals_of(examples, passes), weights, strict=True)
    ]
    return Update(
        loss=sum(each.loss for each in passes),
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        rollouts=len(examples),
        tokens=tokens,
        mean_length=tokens / len(examples),
        entropy=float(signals.entropy.mean()),
        kl=None if signals.kl is None else float(signals.kl.mean()),
        first_token_kl=_first_token_kl(by_example),
        logprob_drift=None if drift_T is None else float(drift_T.mean()),
        logprob_drift_max=None if drift_T is None else float(drift_T.max()),
        padding_share=batches.padding_share(examples, groups) if padded else 0.0,
        weightless=sum(not bool(each.any()) for each in weights),
        seconds=seconds,
        signals=by_example,
    )


def signals_of(examples: Sequence[Example], passes: Sequence[Pass]) -> list[TokenSignals]:
    """Return the signals of each example, in order."""
    found: dict[int, TokenSignals] = {}
    for each in passes:
        found |= zip(each.group, each.signals.split(_lengths(examples, each)), strict=True)
    return [found[index] for index in range(len(examples))]


def losses_of(examples: Sequence[Example], passes: Sequence[Pass]) -> list[Tensor]:
    """Return the losses [response tokens] of each example, in order."""
    found: dict[int, Tensor] = {}
    for each in passes:
        parts = torch.split(each.loss_T, _lengths(examples, each))
        found |= zip(each.group, parts, strict=True)
    return [found[index] for index in range(len(examples))]


def require_finite(examples: Sequence[Example], passes: Sequence[Pass], grad_norm: float) -> None:
    """Refuse a step with a loss or gradient that is not finite.

    Raises:
        TrainingError: naming the rollouts whose loss is not finite, or all of the step where it is
            the gradient only.
    """
    loss = sum(each.loss for each in passes)
    if math.isfinite(loss + grad_norm):
        return
    culprits = [
        example.rollout_id
        for example, loss_T in zip(examples, losses_of(examples, passes), strict=True)
        if not loss_T.isfinite().all()
    ]
    raise TrainingError(
        "the loss or its gradient is not finite",
        got=f"loss {loss:g}, gradient norm {grad_norm:g}",
        where=f"rollouts {', '.join(culprits or [each.rollout_id for each in examples])}",
        fix="the weights are as before the step; lower the learning rate or drop these rollouts",
    )


def require_paired_start(signals: Sequence[TokenSignals], bound: float) -> None:
    """Refuse a teacher that expects another beginning of the response than the student writes.

    The first token is an outlier if its mean KL is above the `bound` in nats and above
    `FIRST_TOKEN_RATIO` times the median KL of all later tokens. Seen before any training: 1e-5
    nats (tiny-solver), 0.2 to 0.5 (SmolLM2-135M as it is, GSM8K, four contexts), but 4.4 for a
    teacher that expects a thought where the student has none. Trained on, such a student soon opens
    its answers with the token of the thought.

    Raises:
        TrainingError: the first token is an outlier.
    """
    first = _first_token_kl(signals)
    if first is None or not signals:
        return
    later_T = torch.cat([each.kl[1:] for each in signals if each.kl is not None])
    usual = float(later_T.median()) if len(later_T) else 0.0
    if first > max(bound, FIRST_TOKEN_RATIO * usual):
        raise TrainingError(
            "the teacher expects another beginning of the response than the student",
            got=f"a mean KL of {first:.3g} nats at the first token; the median of the later tokens "
            f"is {usual:.2g}",
            expected=f"at most {bound:g} nats, or {FIRST_TOKEN_RATIO:g} times the median",
            fix="let the teacher prompt end as the student prompt does: compare "
            "contexts.teacher_prompt_ids with rollouts.prompt_ids. If the context itself asks for "
            "another beginning, word prompts.teacher so that it asks for the student's form, or "
            "raise training.max_first_token_kl. Nothing was trained",
        )


def _first_token_kl(signals: Sequence[TokenSignals]) -> float | None:
    first = [float(each.kl[0]) for each in signals if each.kl is not None]
    return sum(first) / len(first) if first else None


def require_agreement(update: Update, dtype: torch.dtype) -> None:
    """Refuse rollouts whose log-probs are not those of the policy that is trained.

    To be asked of the first step on fresh rollouts, whose weights are those that sampled them, so
    that all difference is rounding. Seen with both engines, on average: tiny-solver 4e-7 nats in
    float32 and 2e-3 in bfloat16, SmolLM2-135M 2e-5 and 4e-2. For comparison, log-probs at
    temperature 0.7 instead of 1 are off by 0.04 and 0.45 for the two models, those after another
    prompt by 2 and 0.7. Smaller differences show only in `updates`.

    Raises:
        TrainingError: the mean difference is above `MISMATCH`.
    """
    if update.logprob_drift is not None and not update.logprob_drift <= MISMATCH[dtype]:
        raise TrainingError(
            "the engine's log-probs are not the trainer's",
            got=f"{update.logprob_drift:.3g} nats per token apart on average",
            expected=f"at most {MISMATCH[dtype]:g} for {dtype}",
            fix="the engine serves other weights or prompts, or log-probs not of the model itself "
            "(vLLM: --logprobs-mode raw_logprobs); nothing was trained",
        )


def _lengths(examples: Sequence[Example], micro_batch: Pass) -> list[int]:
    return [len(examples[index].response_ids) for index in micro_batch.group]
