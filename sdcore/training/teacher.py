"""The self-teacher: the weights that score a response after the context-conditioned prompt.

At the start every kind of teacher is the student. `frozen` stays so; `live` follows it at once,
`ema` slowly; `trust_region` stands between frozen and live in logit space (arXiv 2601.20802).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from peft import PeftModel
from torch import Tensor, nn

from sdcore.config import TeacherConfig
from sdcore.distributed import collectives
from sdcore.models.policies import Policy
from sdcore.training.batches import Packed
from sdcore.training.head import head_input
from sdcore.training.projection import HeadInput


class Teacher:
    """Score sequences with the teacher's weights; with an adapter this needs no second model.

    The initial weights are the base with its adapter off or, where all weights are trained, a
    copy taken when the teacher is made. That must be before a checkpoint is loaded.
    """

    def __init__(self, policy: Policy, settings: TeacherConfig) -> None:
        self._policy, self._settings = policy, settings
        self._copy: Policy | None = None
        if settings.kind != "live" and not isinstance(policy, PeftModel):
            self._copy = deepcopy(policy).requires_grad_(False)
            if settings.kind == "ema":
                self._copy.float()  # bfloat16 would round small moves away
        self._average = self._averaged_weights() if settings.kind == "ema" else {}

    def shard(self) -> None:
        """Shard the copy of the initial weights over the ranks, as the policy is."""
        if self._copy is not None:
            collectives.shard(self._copy)
            self._average = self._averaged_weights() if self._average else {}

    @torch.no_grad()
    def head_inputs(self, packed: Packed) -> list[HeadInput]:
        """Return the head inputs whose logits add up to the teacher's, without gradient."""
        match self._settings.kind:
            case "frozen":
                return [self._initial(packed)]
            case "live":
                return [_seen(self._policy, packed)]
            case "ema":
                return [self._averaged(packed)]
            case "trust_region":
                mix = self._settings.mix
                return [self._initial(packed, 1 - mix), _seen(self._policy, packed, mix)]

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the student, after an optimizer step."""
        if self._average:
            collectives.settle(self._copy or self._policy)
            student: list[Tensor] = [*trained(self._policy).values()]
            average = list(self._average.values())
            torch._foreach_lerp_(average, student, 1 - self._settings.decay)

    def state(self) -> dict[str, Tensor]:
        """Return the average by name, on the first rank; empty for the other kinds."""
        return collectives.gathered(
            (f"average/{name}", value) for name, value in self._average.items()
        )

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        collectives.settle(self._copy or self._policy)
        for name, value in self._average.items():
            value.copy_(collectives.alike(state[f"average/{name}"], value))

    def _initial(self, packed: Packed, share: float = 1.0) -> HeadInput:
        if self._copy is not None:
            return _seen(self._copy, packed, share)
        with self._policy.disable_adapter():
            return head_input(self._policy, packed, share)

    def _averaged(self, packed: Packed) -> HeadInput:
        if self._copy is not None:
            return _seen(self._copy, packed)
        with _swapped(trained(self._policy).values(), self._average.values()):
            return head_input(self._policy, packed)

    def _averaged_weights(self) -> dict[str, Tensor]:
        if self._copy is not None:
            return {name: weight.data for name, weight in self._copy.named_parameters()}
        return {name: weight.detach().clone() for name, weight in trained(self._policy).items()}


def trained(policy: Policy) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name, each once."""
    return {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}


def _seen(policy: Policy, packed: Packed, share: float = 1.0) -> HeadInput:
    return collectives.inside(policy, lambda: head_input(policy, packed, share))


@contextmanager
def _swapped(weights: Iterable[nn.Parameter], others: Iterable[Tensor]) -> Iterator[None]:
    """Let the weights hold the other values, without copying either."""
    pairs = list(zip(weights, others, strict=True))

    def swap() -> None:
        for weight, other in pairs:
            weight.data, other.data = other.data, weight.data

    swap()
    try:
        yield
    finally:
        swap()
