"""From packed sequences to the input of the loss: hidden states at the response, and the head."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sdcore.errors import ModelError
from sdcore.models.policies import Policy
from sdcore.training import packing
from sdcore.training.batches import Packed
from sdcore.training.projection import Head, HeadInput

_PROBE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def head_input(policy: Policy, packed: Packed, share: float = 1.0) -> HeadInput:
    """Return the hidden states [T, D] that predict the response tokens, and the head."""
    packs = packing.is_on(unwrap_peft(policy))
    layout = (packing.in_a_row if packs else packing.in_a_rectangle)(packed)
    hidden_NLD: Tensor = body_of(policy)(**layout.inputs, use_cache=False).last_hidden_state
    hidden_TD = hidden_NLD.flatten(0, 1).index_select(0, layout.positions_T)
    return HeadInput(hidden_TD, head_of(policy), share)


def body_of(policy: Policy) -> nn.Module:
    """Return the policy without its head."""
    model = unwrap_peft(policy)
    body: nn.Module = getattr(model, model.base_model_prefix)
    return body


def head_of(policy: Policy) -> Head:
    """Return the policy's head as data.

    Raises:
        ModelError: the head is not a plain linear layer, such as one with an adapter on it.
    """
    model = unwrap_peft(policy)
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(linear, nn.Linear):
        raise ModelError(
            "the head is not a linear layer",
            got=type(linear).__name__,
            fix="leave the head out of training.lora.targets",
        )
    return Head(
        linear.weight,
        linear.bias,
        getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1),
        getattr(config, "final_logit_softcapping", None),
    )


@torch.no_grad()
def require_exact_head(policy: Policy) -> None:
    """Compare `head_of` with the model's own logits on a few tokens.

    Raises:
        ModelError: they differ, so the model does more to its logits than `Head` describes.
    """
    model, head = unwrap_peft(policy), head_of(policy)
    ids_1L = torch.arange(min(8, len(head.weight_VD)), device=model.device)[None]
    own = model(input_ids=ids_1L, use_cache=False).logits[0].float()
    ours = head.logits(body_of(policy)(input_ids=ids_1L, use_cache=False).last_hidden_state[0])
    masked, ours_masked = own == -torch.inf, ours == -torch.inf
    own, ours = own.masked_fill(masked, 0.0), ours.masked_fill(ours_masked, 0.0)
    difference = float((own - ours).abs().max() / own.abs().max().clamp(min=1e-6))
    if not torch.equal(masked, ours_masked):
        difference = torch.inf
    if not difference <= _PROBE_TOLERANCE[head.weight_VD.dtype]:
        raise ModelError(
            "the model's logits are not those of its head",
            got=f"relative difference {difference:.2g}",
            expected="logits = softcap(scale · (hidden · weightᵀ + bias))",
            where=type(model).__name__,
        )


def unwrap_peft(policy: Policy) -> PreTrainedModel:
    """Return the transformers model without the PEFT wrapper; adapters stay in its layers."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


@contextmanager
def checkpointed(policy: Policy, *, enabled: bool) -> Iterator[None]:
    """Keep only the inputs of layers for the backward pass, which then recomputes them.

    Only the layers themselves go to training mode, not what is in them: dropout stays off.
    """
    model = unwrap_peft(policy)
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if enabled and not model.is_activation_checkpointing:
        model.activation_checkpointing_enable()
    for layer in layers:
        layer.training = enabled
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
