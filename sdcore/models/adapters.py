"""LoRA adapters (arXiv 2106.09685) as data: low-rank updates W + s B A of linear layers.

Axes: I inputs and O outputs of a layer, R rank.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sdcore.config import LoraConfig
from sdcore.errors import ModelError

Policy: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class LowRank:
    """The update s B A of one layer; the scale s is in B."""

    a_RI: Tensor
    b_OR: Tensor

    def to(self, like: Tensor) -> "LowRank":
        """Return it on the device and in the type of another tensor."""
        return LowRank(self.a_RI.to(like), self.b_OR.to(like))

    def dot(self, other: "LowRank") -> float:
        """Return the inner product of two [O, I] updates without making them: tr(BᵀB' A'Aᵀ)."""
        b_RR = self.b_OR.double().T @ other.b_OR.double()
        a_RR = self.a_RI.double() @ other.a_RI.double().T
        return float((b_RR * a_RR).sum())

    def added_to(self, layer: nn.Module) -> RemovableHandle:
        """Add the update to what a layer returns, until the handle is removed: W x + B (A x)."""
        a_IR, b_RO = self.a_RI.T.contiguous(), self.b_OR.T.contiguous()

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inner_NR = inputs[0].reshape(-1, len(a_IR)) @ a_IR
            output.view(-1, output.shape[-1]).addmm_(inner_NR, b_RO)
            return output

        return layer.register_forward_hook(add)


@torch.no_grad()
def updates_of(policy: Policy) -> dict[str, LowRank]:
    """Return a policy's active updates by the name of their layer in the base model, in float32.

    Empty without an adapter, or while it is disabled.
    """
    if not isinstance(policy, PeftModel):
        return {}
    return {
        name: LowRank(
            layer.lora_A[adapter].weight.float(),
            layer.lora_B[adapter].weight.float() * layer.scaling[adapter],
        )
        for name, layer in policy.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and not layer.disable_adapters
        for adapter in layer.active_adapters
    }


def base_weights(policy: Policy) -> dict[str, Tensor]:
    """Return each weight by its name in the base model, without adapters."""
    if not isinstance(policy, PeftModel):
        return dict(policy.named_parameters())
    return {
        name.replace(".base_layer.", "."): weight
        for name, weight in policy.get_base_model().named_parameters()
        if ".lora_" not in name
    }


def merged_weights(policy: Policy) -> dict[str, Tensor]:
    """Return each weight by its name in the base model, with its update: W + s B A in float32.

    W + s B A is computed from W, A and B, so that a live policy and one read back from its
    checkpoint give the same bits.
    """
    merged = base_weights(policy)
    for name, update in updates_of(policy).items():
        weight = merged[f"{name}.weight"]
        layer = policy.get_submodule(f"base_model.model.{name}")
        delta_OI = update.b_OR @ update.a_RI
        conv = isinstance(layer.get_base_layer(), Conv1D)  # its weight is [I, O]
        merged[f"{name}.weight"] = weight.float() + (delta_OI.T if conv else delta_OI)
    return merged


def held_share(updates: Mapping[str, LowRank], held: Mapping[str, LowRank]) -> float | None:
    """Return the share of a policy's update Δ that a sampler holds: ⟨held, Δ⟩ / ⟨Δ, Δ⟩.

    1 where it holds all of it, 0 where rounding left nothing.

    Args:
        updates: Δ, by layer.
        held: what the sampler adds to its layers.

    Returns:
        None if there is no update, or it is zero.
    """
    total = sum(update.dot(update) for update in updates.values())
    if not total:
        return None
    return sum(held[name].dot(update) for name, update in updates.items()) / total


def require_adaptable(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Refuse an adapter on anything but linear layers of the model's body.

    An adapter on tied embeddings would change them for the trainer and not its head, while merged
    weights would change both; and the losses are exact for a head without an adapter.

    Raises:
        ModelError: a target is an embedding, the head, or shares its weight with another layer.
    """
    owners = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    head = model.get_output_embeddings()
    unfit = [
        name
        for name, module in model.named_modules()
        if any(name == target or name.endswith(f".{target}") for target in lora.targets)
        and (
            not isinstance(module, nn.Linear | Conv1D)
            or module is head
            or owners[id(module.weight)] > 1
        )
    ]
    if unfit:
        raise ModelError(
            "an adapter can be trained on linear layers of the model's body only",
            got=f"a target that is an embedding, the head or shared: {', '.join(unfit)}",
            where="training.lora.targets",
            fix="leave it out of training.lora.targets, or leave out training.lora to train all "
            "weights",
        )
