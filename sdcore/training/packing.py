"""Sequences of different lengths in one pass over a model: packed on a GPU, padded elsewhere.

Packed, the sequences stand in one row, each with positions from 0, and attention is told where
they begin; nothing is computed for padding. It takes an attention of ours, under the name `PACKED`.
That is for models whose attention is plain, in bfloat16 on a GPU, where PyTorch has the kernel.

Padded, they are the rows of a rectangle, filled on the right. Under causal attention no real token
sees the padding, so no attention mask is needed.

Axes: N sequences, L tokens of all of them, T response tokens, H heads, D head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sdcore.engines.decoding import PLAIN
from sdcore.training.batches import Packed

PACKED = "packed"  # the name of `packed_attention` in transformers


@dataclass(frozen=True)
class Layout:
    """A model's inputs, and where in its flattened outputs the predicting positions are."""

    inputs: dict[str, Any]
    positions_T: Tensor


def in_a_row(packed: Packed) -> Layout:
    """Put the sequences into one row, with transformers' `FlashAttentionKwargs`."""
    device, longest = packed.ids_L.device, max(packed.lengths)
    length_N = torch.tensor(packed.lengths)
    starts_N = torch.nn.functional.pad(length_N.cumsum(0), (1, 0))
    position_L = torch.arange(len(packed.ids_L)) - starts_N[:-1].repeat_interleave(length_N)
    starts_N = starts_N.to(device, torch.int32)
    inputs = {
        "input_ids": packed.ids_L[None],
        "position_ids": position_L[None].to(device),
        "cu_seq_lens_q": starts_N,
        "cu_seq_lens_k": starts_N,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return Layout(inputs, packed.positions_T)


def in_a_rectangle(packed: Packed) -> Layout:
    """Put each sequence into a row of its own, filled with token 0."""
    count, longest = len(packed.lengths), max(packed.lengths)
    length_N = torch.tensor(packed.lengths)
    shift_N = longest * torch.arange(count) - (length_N.cumsum(0) - length_N)
    place_L = torch.arange(len(packed.ids_L)) + shift_N.repeat_interleave(length_N)
    place_L = place_L.to(packed.ids_L.device)
    ids = packed.ids_L.new_zeros(count * longest).index_copy(0, place_L, packed.ids_L)
    return Layout({"input_ids": ids.view(count, longest)}, place_L[packed.positions_T])


def turn_on(model: PreTrainedModel) -> None:
    """Let the model take packed sequences, if it can; it goes on to take padded ones."""
    if can_pack(model) and model.device.type == "cuda" and model.dtype == torch.bfloat16:
        model.set_attn_implementation(PACKED)


def is_on(model: PreTrainedModel) -> bool:
    """Return whether the model takes packed sequences."""
    on: bool = model.config._attn_implementation == PACKED
    return on


def can_pack(model: PreTrainedModel) -> bool:
    """Return whether attention is plain, without a window, and its heads suit the kernel."""
    config = model.config
    if config.model_type not in PLAIN or config._attn_implementation != "sdpa":
        return False
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    windows = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
    return not windows and width % 8 == 0 and width <= 256


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a row.

    Without the places where they begin this is SDPA.

    Args:
        module: the attention layer.
        query: [1, H, L, D].
        key: [1, H', L, D], where H' divides H.
        value: as the key.
        attention_mask: none; transformers makes none for an attention that it does not know.
        scaling: factor of the scores.
        cu_seq_lens_q: where the sequences begin and the last one ends, int32 [N + 1].
        max_length_q: length of the longest one.
        kwargs: of SDPA.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return whole
    if query.device.type != "cpu":
        # Norms of queries and keys may have widened them; the kernel takes one type.
        query_LHD, key_LHD, value_LHD = (
            each[0].transpose(0, 1).to(value.dtype) for each in (query, key, value)
        )
        output_LHD = varlen_attn(
            query_LHD, key_LHD, value_LHD,
            cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
            scale=scaling, window_size=(-1, 0), enable_gqa=True,
        )  # fmt: skip
        assert isinstance(output_LHD, Tensor)
        return output_LHD[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    parts = (torch.split(each, lengths, 2) for each in (query, key, value))
    outputs = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
