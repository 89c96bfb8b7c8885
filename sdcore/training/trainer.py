"""One optimizer step over a set of examples, with its diagnostics, and checkpoints of all of it.

A step draws no random numbers: dropout is off, and the micro-batches follow from the lengths. So
weights, moments, the teacher's average and the step number are the whole state, and a run that is
resumed from them goes on bit for bit.

Axes: T response tokens of a micro-batch, or of an example.
"""

# One optimizer step:
#
#   the engine samples rollouts ─► Example: prompt, response, teacher prompt or advantage
#     ─► weightings: the weight of each response token; some look at the signals before the step,
#        which takes one more forward pass
#     ─► batches.microbatches: groups of similar length ─► batches.pack: one row of token ids
#     ─► packing: the row as it is on a GPU, else a rectangle padded on the right
#     ─► teacher pass, student pass ─► head.head_input: hidden states that predict the response
#     ─► projection.chunked_loss: chunks of tokens through the heads ─► loss, gradient, signals
#     ─► backward through the student; gradients add up over micro-batches, then over ranks
#     ─► clip the norm, refuse what is not finite ─► AdamW ─► the teacher's average follows

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor

from sdcore.config import (
    CADENCE,
    ConditionSettings,
    TrainingConfig,
    WarmupConfig,
    WeightingSettings,
)
from sdcore.distributed import collectives
from sdcore.errors import TrainingError
from sdcore.models import weight_files
from sdcore.models.policies import Policy, positions
from sdcore.training import batches, checkpoints, losses, packing, results
from sdcore.training.batches import Example, Packed
from sdcore.training.head import checkpointed, head_input, require_exact_head, unwrap_peft
from sdcore.training.objectives import objective_of
from sdcore.training.optimizer import Optimizer
from sdcore.training.projection import HeadInput, TokenScores, chunked_loss, token_scores
from sdcore.training.results import Pass, TokenSignals, Update
from sdcore.training.teacher import Teacher, trained
from sdcore.training.weightings import Weigher

__all__ = ["Example", "TokenSignals", "Trainer", "Update", "require_identity"]

IDENTITY = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # largest KL (nats) that is rounding


class Trainer:
    """Trains a policy under one condition, or warms it up; its `learning_rate` is the peak rate.

    Where the policy has an adapter that alone is trained, else all weights are. A bfloat16 policy
    keeps its frozen weights in bfloat16, trains float32 weights and multiplies in bfloat16.

    `temperature` is the one of sampling, which GRPO has to know.

    Attributes:
        model: the policy.
        tokens_per_microbatch: the setting; where that is `auto`, whoever makes the trainer sets
            this, once its weights are in memory.

    Under torchrun every rank makes the same calls with the same examples and gets the same update;
    each computes its part. `training.sharded` splits the weights among them too (FSDP2).

    Raises:
        ModelError: the policy's head is not one that the losses are exact for.
    """

    def __init__(
        self,
        model: Policy,
        condition: ConditionSettings | WarmupConfig,
        training: TrainingConfig,
        *,
        total_steps: int,
        seed: int,
        temperature: float = 1.0,
    ) -> None:
        self.model, self._training = model.eval(), training
        self._objective = objective_of(condition, temperature)
        self._weigher = Weigher.of(getattr(condition, "tokens", WeightingSettings(kind="all")))
        self._settings: dict[str, Any] = {
            "condition": condition.model_dump(mode="json"),
            "training": training.model_dump(mode="json", exclude=CADENCE),
            "total_steps": total_steps,
            "seed": seed,
        }
        bare = unwrap_peft(model)
        self.tokens_per_microbatch: int | Literal["auto"] = training.tokens_per_microbatch
        self._dtype, self._device = bare.dtype, bare.device
        self._limit = positions(bare.config)
        require_exact_head(model)
        packing.turn_on(bare)
        self._padded = not packing.is_on(bare)
        if not isinstance(model, PeftModel):
            model.requires_grad_(True)
        weights = self._objective.teacher
        self._teacher = None if weights is None else Teacher(model, weights)
        for weight in trained(model).values():
            weight.data = weight.data.float()
        if training.sharded and collectives.rank_and_world_size()[1] > 1:
            self._shard()
        self._weights = trained(self.model)
        self._optimizer = Optimizer(self._weights, condition.learning_rate, training, total_steps)

    def step(self, examples: Sequence[Example]) -> Update | None:
        """Take one optimizer step on the loss of all examples, micro-batch by micro-batch.

        Returns:
            Its figures; None, and no step is taken, where the weight of every token is 0.

        Raises:
            TrainingError: an example does not fit, the loss or the gradient is not finite, or, at
                the first step, the teacher expects another beginning of the response; the weights
                and the optimizer are then as they were.
        """
        started = time.perf_counter()
        self._require_fit(examples)
        self._objective.require(examples)
        weights = self._token_weights(examples)
        if not any(each.any() for each in weights):
            return None
        shares = batches.loss_shares(weights, self._objective.by_sequence)
        mine = [self._backward(group, examples, shares) for group in self._groups(examples)]
        collectives.sum_gradients(self._weights.values())
        passes = _gathered(mine)
        norm = self._optimizer.clip()
        try:
            results.require_finite(examples, passes, norm)
            if self._optimizer.step == 0:
                signals = results.signals_of(examples, passes)
                results.require_paired_start(signals, self._training.max_first_token_kl)
        except TrainingError:
            self._optimizer.discard()
            raise
        rate = self._optimizer.apply()
        if self._teacher is not None:
            self._teacher.follow()
        seconds = time.perf_counter() - started
        return results.update_of(
            examples,
            passes,
            weights,
            grad_norm=norm,
            learning_rate=rate,
            padded=self._padded,
            seconds=seconds,
        )

    @torch.no_grad()
    def signals(self, examples: Sequence[Example]) -> list[TokenSignals]:
        """The signals of a step, without taking it."""
        self._require_fit(examples)
        mine = [self._scored(group, examples) for group in self._groups(examples)]
        return results.signals_of(examples, _gathered(mine))

    @torch.no_grad()
    def remember(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with their log-probs at the sampling temperature, by the present weights.

        For GRPO that takes several steps on the rollouts of one round and samples at a temperature
        other than 1, at which the stored log-probs are.
        """
        self._require_fit(examples)
        losses_N = self._losses(examples, self._objective.temperature)
        return [replace(e, old_logprobs=(-x_T).tolist()) for e, x_T in zip(examples, losses_N)]

    @torch.no_grad()
    def drift(self, examples: Sequence[Example]) -> float:
        """Mean log-prob that sampled tokens lose under the present weights, nats per token.

        The examples were sampled by other weights and have their log-probs. If they were sampled
        at temperature 1, this is an unbiased estimate of KL(those weights ‖ the present ones).
        """
        batches.require_whole(examples, self._limit)
        surprisal_T = torch.cat(self._losses(examples, 1.0))
        sampled_T = batches.sampled_logprobs(examples)
        assert sampled_T is not None, "sampled examples have log-probs"
        return float((sampled_T + surprisal_T).mean())

    def save(self, folder: Path, *, resumable: bool = True) -> None:
        """Write the weights and, under `trainer/`, the rest of the state: whole or not at all.

        Args:
            folder: of the checkpoint.
            resumable: with the rest of the state, without which it can only be sampled from.
        """
        state = None
        if resumable:
            state = self._optimizer.state() | (self._teacher.state() if self._teacher else {})
        checkpoints.write(folder, self.model, state, self._optimizer.step, self._settings)

    def digest(self) -> str:
        """Digest of the weights, that of `weight_files.folder_digest` once they are saved."""
        return weight_files.digest(weight_files.gathered(self.model))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint. The frozen teacher stays what it was: the initial weights.

        Raises:
            ModelError: there is none, it is damaged, or it was written under other settings.
            SdcoreError: another rank cannot read it.
        """
        collectives.settle(self.model)

        def read() -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
            step, state = checkpoints.read(folder, self._settings)
            return step, state, weight_files.read(self.model, folder)

        step, state, weights = collectives.together(read)
        weight_files.put(self.model, weights)
        self._optimizer.restore(state, step)
        if self._teacher is not None:
            self._teacher.restore(state)

    def load_weights(self, folder: Path) -> None:
        """Take the weights of a checkpoint alone: to sample from, not to train on.

        Raises:
            ModelError: there are none, or they are damaged.
            SdcoreError: another rank cannot read them.
        """
        collectives.settle(self.model)
        read = partial(weight_files.read, self.model, folder)
        weight_files.put(self.model, collectives.together(read))

    def _require_fit(self, examples: Sequence[Example]) -> None:
        """Refuse examples on every rank, before any of them waits for the others."""
        batches.require_whole(examples, self._limit)
        batches.student_side(examples)
        if self._teacher is not None and self._objective.prompted:
            batches.teacher_side(examples)
        if self._teacher is not None and self._optimizer.step == 0:
            same = replace(examples[0], teacher_prompt_ids=examples[0].prompt_ids)
            kl_T = self._scored([0], [same]).signals.kl
            assert kl_T is not None, "a teacher gives a KL"
            require_identity(kl_T, self._dtype)

    def _groups(self, examples: Sequence[Example]) -> list[list[int]]:
        """This rank's share of each micro-batch; empty where there are fewer examples than ranks.

        Every rank has as many, since sharded weights make each forward pass a joint act.
        """
        assert self.tokens_per_microbatch != "auto", "it is to be set before a step"
        rank, ranks = collectives.rank_and_world_size()
        groups = batches.microbatches(
            examples, self.tokens_per_microbatch, padded=self._padded, ranks=ranks
        )
        return [group[rank::ranks] for group in groups]

    def _token_weights(self, examples: Sequence[Example]) -> list[Tensor]:
        """Weights [T] of each example's tokens; every rank makes those of all examples."""
        signals: Sequence[TokenSignals | None] = [None] * len(examples)
        if self._weigher.needs_signals:
            signals = self.signals(examples)
        weights = [self._weigher.weights(e, s) for e, s in zip(examples, signals, strict=True)]
        return [
            weight_T if e.token_weights is None else weight_T * torch.tensor(e.token_weights)
            for e, weight_T in zip(examples, weights, strict=True)
        ]

    def _backward(
        self, group: list[int], examples: Sequence[Example], shares: Sequence[Tensor]
    ) -> Pass:
        """Add the gradient of one micro-batch; an empty one stands in with weight 0."""
        chosen = [examples[index] for index in group] or examples[:1]
        weights_T = torch.cat([shares[index] for index in group] or [0 * shares[0]])

        def forward() -> tuple[Tensor, Tensor, TokenScores]:
            with checkpointed(self.model, enabled=self._training.activation_checkpointing):
                looked = head_input(self.model, student)
            weights, loss = weights_T.to(self._device), self._objective.loss(chosen, self._device)
            return chunked_loss(looked, teacher, student.tokens_T, weights, loss)

        # Autocast converts what an adapter gets, to the same bits. PEFT would make a float32 copy
        # before, and a further one for the backward pass, which may run the layers again.
        with disable_input_dtype_casting(self.model, active=self._dtype != torch.float32):
            with self._autocast():
                student, teacher = self._sides(chosen)
                loss, loss_T, scores = collectives.inside(self.model, forward)
            loss.backward()  # type: ignore[no-untyped-call]
        return Pass(group, float(loss.detach()), loss_T.cpu(), self._signals(chosen, scores))

    @torch.no_grad()
    def _scored(self, group: list[int], examples: Sequence[Example]) -> Pass:
        """Return the statistics of a micro-batch, without a gradient."""
        chosen = [examples[index] for index in group] or examples[:1]
        with self._autocast():
            student, teacher = self._sides(chosen)
            scores = collectives.inside(
                self.model,
                lambda: token_scores(head_input(self.model, student), teacher, student.tokens_T),
            )
        return Pass(group, 0.0, torch.zeros(0), self._signals(chosen, scores))

    def _losses(self, examples: Sequence[Example], temperature: float) -> list[Tensor]:
        """−log p of each example's response tokens at a temperature."""
        groups = self._groups(examples)
        mine = [self._surprisals(group, examples, temperature) for group in groups]
        return results.losses_of(examples, _gathered(mine))

    def _surprisals(
        self, group: list[int], examples: Sequence[Example], temperature: float
    ) -> Pass:
        """−log p of a micro-batch's response tokens at a temperature, as its loss."""
        student = batches.student_side([examples[index] for index in group] or examples[:1])
        student = student.to(self._device)
        objective = partial(losses.cross_entropy, temperature=temperature)
        weights = torch.zeros(len(student.tokens_T), device=self._device)
        with self._autocast():
            _, loss_T, scores = collectives.inside(
                self.model,
                lambda: chunked_loss(
                    head_input(self.model, student), [], student.tokens_T, weights, objective
                ),
            )
        return Pass(group, 0.0, loss_T.cpu(), TokenSignals.of(scores, torch.zeros_like(loss_T)))

    def _sides(self, examples: Sequence[Example]) -> tuple[Packed, list[HeadInput]]:
        """Return the student's sequences, and the teacher's head inputs for the same responses."""
        student = batches.student_side(examples).to(self._device)
        if self._teacher is None:
            return student, []
        prompted = self._objective.prompted
        other = batches.teacher_side(examples).to(self._device) if prompted else student
        batches.require_same_response(student, other)
        return student, self._teacher.head_inputs(other)

    def _signals(self, examples: Sequence[Example], scores: TokenScores) -> TokenSignals:
        """Signals of the examples' tokens, with the objective's advantage."""
        return TokenSignals.of(scores, self._objective.advantage(examples, scores))

    def _shard(self) -> None:
        collectives.shard(self.model)
        if self._teacher is not None:
            self._teacher.shard()

    def _autocast(self) -> AbstractContextManager[object]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)


def _gathered(passes: Sequence[Pass]) -> list[Pass]:
    """The micro-batches of all ranks, without the empty ones."""
    return collectives.gather([each for each in passes if each.group])


def require_identity(kl_T: Tensor, dtype: torch.dtype) -> None:
    """Before the first step the teacher on the student's own prompt must be the student.

    Raises:
        TrainingError: a token's KL is more than rounding.
    """
    largest = float(kl_T.max())
    if not largest <= IDENTITY[dtype]:
        raise TrainingError(
            "student and teacher differ on the same prompt before any step",
            got=f"a KL of {largest:.3g} nats",
            expected="0, because they are the same weights",
            fix="start from the base model, and from an adapter whose B is zero",
        )
