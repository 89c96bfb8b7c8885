"""Decode rows in lockstep: keys and values, padding and positions of a batch of sequences.

Axes: B batch rows, P distinct prompts, G places a prompt has for rows, T tokens, V vocabulary,
H key-value heads, R query heads a key-value head, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROWTH = 32  # tokens by which a buffer of keys or values grows
SHARED = "shared_prefix"  # the name of `shared_prefix_attention` in transformers
PLAIN = {"llama", "qwen2", "qwen3"}  # models whose attention is softmax(q k) v and nothing else


@dataclass(frozen=True)
class Prompts:
    """The distinct prompts of a batch, padded on the left with token 0."""

    ids_PT: Tensor
    mask_PT: Tensor  # false at the padding
    prompt_B: Tensor  # the prompt of each row

    @classmethod
    def of(cls, prompts: Sequence[tuple[int, ...]], device: torch.device) -> Self:
        """Take one prompt for each row."""
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        longest = max(map(len, index))
        ids_PT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in index])
        mask_PT = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in index])
        prompt_B = torch.tensor([index[prompt] for prompt in prompts])
        return cls(*(each.to(device) for each in (ids_PT, mask_PT, prompt_B)))

    @property
    def position_PT(self) -> Tensor:
        """Positions from 0 at the first token of each prompt."""
        return (self.mask_PT.cumsum(1) - 1).clamp(min=0)


class Rows:
    """The sequences that are being decoded.

    Where the attention is plain and the prompts have about as many rows each, rows share the keys
    and values of their prompt; elsewhere each has a copy.
    """

    def __init__(
        self, model: PreTrainedModel, cache: DynamicCache, mask_PT: Tensor, prompt_B: Tensor
    ) -> None:
        """Start rows after the prompts in `cache`; `prompt_B` is the index of each row's prompt."""
        self._model, self._cache = model, cache
        self._position_B = mask_PT.sum(1)[prompt_B]
        self._mask_BT = None if bool(mask_PT.all()) else mask_PT[prompt_B]
        self._prefix: Prefix | None = None
        plain = model.config._attn_implementation == SHARED and all(
            type(layer) is DynamicLayer for layer in cache.layers
        )
        even = len(mask_PT) * int(prompt_B.bincount().max()) <= 2 * len(prompt_B)
        if plain and even:
            self._mask_BT, self._prefix = None, Prefix.of(cache, mask_PT, prompt_B)
            cache.layers = [_GrowingLayer(layer, len(prompt_B)) for layer in cache.layers]
        else:
            cache.reorder_cache(prompt_B)

    @classmethod
    def prefill(
        cls, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]
    ) -> tuple[Self, Tensor]:
        """Run each distinct prompt once; return one row per prompt, and its next logits [B, V]."""
        given = Prompts.of(prompts, model.device)
        cache = DynamicCache(config=model.config)
        logits_PV = model(
            given.ids_PT,
            attention_mask=None if bool(given.mask_PT.all()) else given.mask_PT,
            position_ids=given.position_PT,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        rows = cls(model, cache, given.mask_PT, given.prompt_B)
        return rows, logits_PV[given.prompt_B]

    def keep(self, index_B: Tensor) -> None:
        """Keep the rows at `index_B`."""
        self._cache.reorder_cache(index_B)
        self._position_B = self._position_B[index_B]
        if self._mask_BT is not None:
            self._mask_BT = self._mask_BT[index_B]
        if self._prefix is not None:
            self._prefix.keep(index_B)

    def advance(self, token_B: Tensor) -> Tensor:
        """Append a token to each row; return the logits [B, V] of the next one."""
        if self._mask_BT is not None:
            self._mask_BT = pad(self._mask_BT, (0, 1), value=True)
        logits_B1V: Tensor = self._model(
            token_B[:, None],
            attention_mask=self._mask_BT,
            position_ids=self._position_B[:, None],
            past_key_values=self._cache,
            **({} if self._prefix is None else {"prefix": self._prefix}),
        ).logits
        self._position_B = self._position_B + 1
        return logits_B1V[:, -1]


@dataclass
class Prefix:
    """Keys and values of the prompts, each stored once however many rows continue it."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values of a model layer, [P, H, T, D]
    padding_P11T: Tensor  # what to add to the scores: 0, or -inf at padding
    prompt_B: Tensor  # the prompt that a row continues
    place_B: Tensor  # the row's place among the G of its prompt
    places: int

    @classmethod
    def of(cls, cache: DynamicCache, mask_PT: Tensor, prompt_B: Tensor) -> Self:
        """The prompts of a cache; `mask_PT` is false at their padding."""
        earlier_BP = one_hot(prompt_B).cumsum(0)
        place_B = earlier_BP.gather(1, prompt_B[:, None])[:, 0] - 1
        padding_PT = torch.zeros_like(mask_PT, dtype=cache.layers[0].keys.dtype)
        return cls(
            [(layer.keys, layer.values) for layer in cache.layers],
            padding_PT.masked_fill(~mask_PT, -torch.inf)[:, None, None],
            prompt_B,
            place_B,
            int(place_B.max()) + 1,
        )

    def keep(self, index_B: Tensor) -> None:
        """Keep the rows at `index_B`, and the prompts that they continue."""
        kept_P, self.prompt_B = torch.unique(self.prompt_B[index_B], return_inverse=True)
        self.place_B = self.place_B[index_B]
        self.layers = [(keys[kept_P], values[kept_P]) for keys, values in self.layers]
        self.padding_P11T = self.padding_P11T[kept_P]

    def by_prompt(self, rows_BHRX: Tensor) -> Tensor:
        """Bring rows together with the others of their prompt, [P, H, G R, X]."""
        _, heads, group, width = rows_BHRX.shape
        prompts = len(self.padding_P11T)
        places_PHGRX = rows_BHRX.new_zeros(prompts, heads, self.places, group, width)
        places_PHGRX[self.prompt_B, :, self.place_B] = rows_BHRX
        return places_PHGRX.flatten(2, 3)

    def by_row(self, prompts_PHQX: Tensor) -> Tensor:
        """Undo `by_prompt`: [B, H, R, X]."""
        prompts, heads, _, width = prompts_PHQX.shape
        places_PHGRX = prompts_PHQX.reshape(prompts, heads, self.places, -1, width)
        return places_PHGRX[self.prompt_B, :, self.place_B]


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    prefix: Prefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token per row to its prompt and to its own response.

    One matrix product a prompt serves all its rows, so that the keys and values of a prompt are
    read once a step and not once a row (arXiv 2402.05099). Without a prefix this is SDPA.

    Args:
        module: the attention layer.
        query: [B, H R, 1, D].
        key: the response's keys, [B, H, T, D].
        value: the response's values, [B, H, T, D].
        attention_mask: of SDPA.
        scaling: factor of the scores.
        prefix: the prompts.
        kwargs: of SDPA.
    """
    if prefix is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    keys_PHTD, values_PHTD = prefix.layers[module.layer_idx]
    query_BHRD = query.reshape(len(query), key.shape[1], -1, query.shape[-1]) * scaling
    prompt_PHQT = prefix.by_prompt(query_BHRD) @ keys_PHTD.mT + prefix.padding_P11T
    scores_BHRT = torch.cat([prefix.by_row(prompt_PHQT), query_BHRD @ key.mT], dim=-1)
    weights_BHRT = scores_BHRT.softmax(-1, dtype=torch.float32).to(query.dtype)
    length = keys_PHTD.shape[2]
    prompt_PHQD = prefix.by_prompt(weights_BHRT[..., :length]) @ values_PHTD
    output_BHRD = prefix.by_row(prompt_PHQD) + weights_BHRT[..., length:] @ value
    return output_BHRD.reshape(len(query), 1, -1, value.shape[-1]), None


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that appends in place.

    `DynamicLayer` copies all keys and values for each new token. Here they are views of buffers
    with room for more, so that they are copied once in `GROWTH` tokens.
    """

    def __init__(self, like: DynamicLayer, rows: int) -> None:
        """A layer of no tokens, with the heads and widths of another."""
        super().__init__()
        self.lazy_initialization(like.keys, like.values)
        self._buffers = [
            states.new_empty(rows, states.shape[1], 0, states.shape[3])
            for states in (like.keys, like.values)
        ]
        self._show(0)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of one token, [B, H, 1, D]; all so far, [B, H, T, D]."""
        length = self.keys.shape[2]
        if length == self._buffers[0].shape[2]:
            self._buffers = [_grown(buffer) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length : length + 1] = states
        self._show(length + 1)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows at `beam_idx`."""
        self._buffers = [buffer.index_select(0, beam_idx) for buffer in self._buffers]
        self._show(self.keys.shape[2])


def _grown(buffer_BHTD: Tensor) -> Tensor:
    rows, heads, _, width = buffer_BHTD.shape
    return torch.cat([buffer_BHTD, buffer_BHTD.new_empty(rows, heads, GROWTH, width)], dim=2)


AttentionInterface.register(SHARED, shared_prefix_attention)
AttentionMaskInterface.register(SHARED, sdpa_mask)
