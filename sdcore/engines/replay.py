"""Decode rows in lockstep on a GPU, where a step is recorded once and then replayed.

A step is a thousand small kernels, and Python launches them more slowly than a GPU computes them. A
CUDA graph launches them together. It reads and writes the same memory each time, so keys and values
have a fixed size from the start (transformers' `StaticCache`), and tokens and positions are written
in place.

Axes: B batch rows, P distinct prompts, T tokens of prompt and response, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from sdcore.engines.decoding import Prompts

# Models whose decoding step never waits for the GPU; `tests/gpu` runs each of them.
MODELS = {
    "arcee", "ernie4_5", "gemma", "glm4", "granite", "helium", "llama", "mistral", "olmo2", "phi3",
    "qwen2", "qwen3", "seed_oss", "smollm3", "starcoder2",
}  # fmt: skip
ROPES = {"default", "linear", "llama3", "yarn"}  # others read the longest position on the CPU
ALIGNED = 64  # a cache holds a multiple of it: attention copies masks whose rows are not aligned


def can_replay(model: PreTrainedModel) -> bool:
    """Return whether a step of the model can be recorded; with a sliding window it changes."""
    config = model.config
    if config.model_type not in MODELS or config._attn_implementation != "sdpa":
        return False
    if config.rope_parameters["rope_type"] not in ROPES:
        return False
    return all(type(layer) is StaticLayer for layer in StaticCache(config, max_cache_len=1).layers)


class StaticRows:
    """The sequences that are being decoded, each with its own keys and values."""

    def __init__(
        self, model: PreTrainedModel, cache: StaticCache, mask_BT: Tensor, position_B: Tensor
    ) -> None:
        """Go on after the prompts in `cache`; `mask_BT` is false at their padding."""
        self._model, self._cache = model, cache
        self._mask_BT, self._position_B = mask_BT, position_B
        self._token_B = torch.zeros_like(position_B)
        self._step = Replayed()

    @classmethod
    def prefill(
        cls, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], new_tokens: int
    ) -> tuple[Self, Tensor]:
        """Run each distinct prompt once; return one row per prompt, and its next logits [B, V]."""
        given = Prompts.of(prompts, model.device)
        longest = given.ids_PT.shape[1] + new_tokens
        longest += -longest % ALIGNED
        mask_PT = pad(given.mask_PT, (0, longest - given.ids_PT.shape[1]), value=True)
        cache = StaticCache(config=model.config, max_cache_len=longest)
        logits_PV = model(
            given.ids_PT,
            attention_mask=mask_PT,
            position_ids=given.position_PT,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        cache.reorder_cache(given.prompt_B)
        length_B = given.mask_PT.sum(1)[given.prompt_B]
        return cls(model, cache, mask_PT[given.prompt_B], length_B), logits_PV[given.prompt_B]

    def keep(self, index_B: Tensor) -> None:
        """Keep the rows at `index_B`."""
        self._cache.reorder_cache(index_B)
        self._mask_BT, self._position_B = self._mask_BT[index_B], self._position_B[index_B]
        self._token_B = self._token_B[index_B]
        self._step = Replayed()

    def advance(self, token_B: Tensor) -> Tensor:
        """Append a token to each row; return the logits [B, V] of the next, until the next call."""
        self._token_B.copy_(token_B)
        return self._step(self._logits)

    def _logits(self) -> Tensor:
        logits_B1V: Tensor = self._model(
            self._token_B[:, None],
            attention_mask=self._mask_BT,
            position_ids=self._position_B[:, None],
            past_key_values=self._cache,
        ).logits
        self._position_B.add_(1)
        return logits_B1V[:, -1]


class Replayed:
    """Replays the kernels of a function that is called again and again, on the same memory.

    Without a GPU the function is called each time. It is passed to each call rather than stored:
    a stored method of the owner would make a reference cycle, the garbage collector would free the
    graph at some later time, and if another graph is being recorded then, that recording fails.
    """

    def __init__(self) -> None:
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def __call__(self, function: Callable[[], Tensor]) -> Tensor:
        """Return the result of the function, the same at each call; the next one overwrites it."""
        if self._recorded is not None:
            graph, result = self._recorded
            graph.replay()
            return result
        result = function()  # outside of a recording: libraries set themselves up
        if result.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._recorded = graph, function()  # is recorded and computes nothing
        return result
