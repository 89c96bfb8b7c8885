"""The transformers engine: batched sampling through a model's own forward pass.

Axes: B batch rows, P distinct prompts, T tokens, V vocabulary, N samples of a batch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sdcore.config import EngineConfig, SamplingConfig
from sdcore.engines import (
    Completion,
    OnFinished,
    OnProgress,
    Request,
    Resources,
    Served,
    silent,
    unheard,
)
from sdcore.engines.decoding import PLAIN, SHARED, Rows
from sdcore.engines.replay import StaticRows, can_replay
from sdcore.errors import EngineError, ModelError
from sdcore.models import adapters, policies, weight_files
from sdcore.models.adapters import LowRank
from sdcore.system.memory import free_bytes

MEMORY = 4 << 30  # bytes of a batch's keys, values and logits on a processor
BLOCK = 512  # tokens of the vocabulary whose probabilities are added up first


@dataclass(frozen=True)
class Pace:
    """Interval at which a device is asked for finished samples, and when these are dropped."""

    tokens: int  # drawn before it is asked: a GPU goes on meanwhile, past the ends of samples
    kept: float  # share of unfinished rows below which the finished ones are dropped


PACES = {"cpu": Pace(1, 0.8), "cuda": Pace(8, 0.5)}  # a GPU records its step again each time


def open_engine(settings: EngineConfig, resources: Resources) -> "TransformersEngine":
    """Return an engine with weights of its own, those of the named model."""
    return TransformersEngine(
        policies.load_policy(resources.folder, resources.model),
        end_ids=policies.end_ids(resources.folder),
    )


class TransformersEngine:
    """Samples from its own copy of the weights, so that training may go on with the policy's.

    Requests are ordered by prompt and cut into batches, so the composition of a batch depends on
    the request list alone. Keys, values and logits of a batch take at most `MEMORY` on a processor,
    and on a GPU half of what is free, for a power of two of rows, so that the same work finds the
    same batches. A distinct prompt of a batch is computed once and its keys and values
    are given to all its samples; finished samples leave the batch. The same requests in the same
    order give the same tokens bit for bit on the same machine and number of threads.

    Args:
        model: this object becomes the engine's copy; no one else may change it.
        end_ids: token ids that end a response.
    """

    reads_folders = False

    def __init__(self, model: PreTrainedModel, *, end_ids: Collection[int]) -> None:
        self.model = model.eval().requires_grad_(False)
        self._device = next(model.parameters()).device
        self._replays = self._device.type == "cuda" and can_replay(model)
        plain = model.config.model_type in PLAIN and model.config._attn_implementation == "sdpa"
        if plain and not self._replays:
            model.set_attn_implementation(SHARED)
        self._end_ids = torch.tensor(sorted(end_ids), device=self._device)
        self._handles: list[RemovableHandle] = []
        self.update_share: float | None = None

    @torch.no_grad()
    def load(self, policy: Served) -> None:
        """Copy a policy's weights in; an adapter stays beside them, as it is in training.

        W + s B A rounded to bfloat16 would lose most of a small update, so it is never formed.
        Without live weights the folder must hold all weights.

        Raises:
            EngineError: there are neither live weights nor a folder.
            ModelError: the policy's weights do not fit this engine's model.
        """
        if policy.live is None:
            if policy.folder is None:
                raise EngineError("the policy has no weights", got=f"policy {policy.policy_id}")
            self._set({})
            weight_files.load(self.model, policy.folder)
            self.update_share = None
            return
        theirs, own = adapters.base_weights(policy.live), dict(self.model.named_parameters())
        _require_fit(theirs, own)
        for name, weight in own.items():
            weight.copy_(theirs[name])
        updates = adapters.updates_of(policy.live)
        held = {name: update.to(own[f"{name}.weight"]) for name, update in updates.items()}
        self._set(held)
        self.update_share = adapters.held_share(updates, held)

    def close(self) -> None:
        """Hold nothing that must be freed."""

    def _set(self, updates: Mapping[str, LowRank]) -> None:
        """Replace the updates that the layers add to their outputs."""
        for handle in self._handles:
            handle.remove()
        self._handles = [
            update.added_to(self.model.get_submodule(name)) for name, update in updates.items()
        ]

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        on_progress: OnProgress = silent,
        on_finished: OnFinished = unheard,
    ) -> list[Completion]:
        """Draw one sample per request, in the order of the requests.

        Args:
            requests: prompts and seeds.
            sampling: temperature, top-p, length and batch size.
            on_progress: called after each token of a batch.
            on_finished: called with each batch.

        Raises:
            EngineError: a prompt is empty or has an unknown token, or prompt and response exceed
                the model's positions.
        """
        if not requests:
            return []
        self._check(requests, sampling)
        order = sorted(range(len(requests)), key=lambda i: _prompt_order(requests[i]))
        size = self._batch_size(requests, sampling)
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = [requests[i] for i in chosen]
            fresh = dict(zip(chosen, self._sample(batch, sampling, on_progress), strict=True))
            completions |= fresh
            on_finished(fresh)
        return [completions[i] for i in range(len(requests))]

    def _check(self, requests: Sequence[Request], sampling: SamplingConfig) -> None:
        if not all(request.prompt_ids for request in requests):
            raise EngineError("a prompt is empty", expected="at least one token id")
        size = self.model.get_input_embeddings().num_embeddings
        if (last := max(max(request.prompt_ids) for request in requests)) >= size:
            raise EngineError(
                "a prompt has a token that the model does not have",
                got=f"token {last}",
                expected=f"ids below {size}",
                fix="put the tokenizer and the chat template that belong to the model into its "
                "folder",
            )
        longest = max(len(request.prompt_ids) for request in requests)
        limit = policies.positions(self.model.config)
        if limit is not None and longest + sampling.max_new_tokens > limit:
            raise EngineError(
                "prompt and response do not fit into the model's positions",
                got=f"{longest} prompt tokens + {sampling.max_new_tokens} new tokens",
                expected=f"at most {limit}",
                fix="lower sampling.max_new_tokens",
            )

    def _batch_size(self, requests: Sequence[Request], sampling: SamplingConfig) -> int:
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        token = 2 * config.num_hidden_layers * heads * width * self.model.dtype.itemsize
        longest = max(len(request.prompt_ids) for request in requests)
        logits = 32 * config.vocab_size  # float32 and float64 copies while a token is drawn
        sample: int = token * (longest + sampling.max_new_tokens) + logits
        if self._device.type == "cpu":
            rows = MEMORY // sample
        else:
            rows = rounded_down(free_bytes(self._device) // (2 * sample))
        return max(1, min(sampling.batch_size, rows))

    def _sample(
        self,
        batch: Sequence[Request],
        sampling: SamplingConfig,
        on_progress: OnProgress,
    ) -> list[Completion]:
        """Draw the samples of one batch; rows draw on after their end token until they leave."""
        pace, prompts = PACES[self._device.type], [request.prompt_ids for request in batch]
        rows: Rows | StaticRows
        if self._replays:
            rows, logits_BV = StaticRows.prefill(self.model, prompts, sampling.max_new_tokens)
        else:
            rows, logits_BV = Rows.prefill(self.model, prompts)
        uniforms_NT = _uniforms(batch, sampling).to(self._device)
        tokens_NT = torch.zeros(uniforms_NT.shape, dtype=torch.long, device=self._device)
        logprobs_NT = torch.zeros(uniforms_NT.shape, device=self._device)
        sample_B = torch.arange(len(batch), device=self._device)
        running_B, running = torch.ones_like(sample_B, dtype=torch.bool), len(batch)
        drawn = torch.zeros((), dtype=torch.long, device=self._device)  # tokens of running rows
        finite = torch.ones_like(drawn)
        for step in range(sampling.max_new_tokens):
            token_B, logprob_B = draw(logits_BV, uniforms_NT[sample_B, step], sampling)
            tokens_NT[sample_B, step], logprobs_NT[sample_B, step] = token_B, logprob_B
            drawn += running_B.sum()
            finite &= logprob_B.isfinite().all()
            running_B &= ~torch.isin(token_B, self._end_ids)
            last = step + 1 == sampling.max_new_tokens
            if last or (step + 1) % pace.tokens == 0:
                left, tokens, sound = torch.stack([running_B.sum(), drawn, finite]).tolist()
                _require_finite(sound)
                on_progress(running - left, tokens)
                running = left
                drawn.zero_()
                if not running or last:
                    break
                if running <= pace.kept * len(sample_B):
                    kept_B = running_B.nonzero()[:, 0]
                    rows.keep(kept_B)
                    token_B, sample_B = token_B[kept_B], sample_B[kept_B]
                    running_B = running_B[kept_B]
            logits_BV = rows.advance(token_B)
        on_progress(running, 0)
        return _completions(tokens_NT, logprobs_NT, torch.isin(tokens_NT, self._end_ids))


def rounded_down(rows: int) -> int:
    """Return the largest power of two up to a number of rows; 0 for none."""
    return 1 << (rows.bit_length() - 1) if rows else 0


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution.

    Args:
        logits_BV: next-token logits of the model.
        uniforms_B: float64 numbers in [0, 1), one per row, each for the token of its row only.
        sampling: temperature (0 takes the most likely token) and top-p: the smallest set of the
            most likely tokens whose probability reaches p (arXiv 1904.09751).

    Returns:
        Token ids [B], and their float32 log-probs [B] at temperature 1 without top-p; NaN where the
        logits are not numbers, or infinite.
    """
    logits_BV = logits_BV.float()
    total_B1 = logits_BV.logsumexp(-1, keepdim=True)
    if sampling.temperature == 0:
        token_B1 = logits_BV.argmax(-1, keepdim=True)
    else:
        probs_BV = (logits_BV / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            probs_BV = _nucleus(probs_BV, sampling.top_p)
        token_B1 = _inverted(probs_BV, uniforms_B[:, None])
    logprob_B1 = logits_BV.gather(1, token_B1) - total_B1
    return token_B1[:, 0], logprob_B1[:, 0]


def _inverted(probs_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """The first token [B, 1] up to which the probabilities add up to more than the uniform number.

    They are added up in float64: of a large vocabulary only between blocks of tokens, and within
    the block of the token.
    """
    if probs_BV.shape[1] <= BLOCK:
        sum_BV = probs_BV.double().cumsum(-1)
        return _first_above(sum_BV, _below(uniform_B1 * sum_BV[:, -1:], sum_BV[:, -1:]))
    blocks_BKX = pad(probs_BV, (0, -probs_BV.shape[1] % BLOCK)).view(len(probs_BV), -1, BLOCK)
    edge_BK = blocks_BKX.sum(-1, dtype=torch.float64).cumsum(-1)
    goal_B1 = _below(uniform_B1 * edge_BK[:, -1:], edge_BK[:, -1:])
    block_B1 = _first_above(edge_BK, goal_B1)
    before_B1 = pad(edge_BK, (1, 0)).gather(1, block_B1)
    inside_BX = blocks_BKX.take_along_dim(block_B1[..., None], 1)[:, 0].double().cumsum(-1)
    # The goal is below the last sum, so a token passes it, and its probability is above 0.
    place_B1 = _first_above(inside_BX, _below(goal_B1 - before_B1, inside_BX[:, -1:]))
    return (block_B1 * BLOCK + place_B1).clamp(max=probs_BV.shape[1] - 1)


def _first_above(sums_BX: Tensor, goal_B1: Tensor) -> Tensor:
    """Index of the first sum above the goal; of the last one where the sums are not numbers."""
    return torch.searchsorted(sums_BX, goal_B1, right=True).clamp(max=sums_BX.shape[1] - 1)


def _below(goal_B1: Tensor, total_B1: Tensor) -> Tensor:
    """The goal, but below the total."""
    return torch.minimum(goal_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))


def _require_finite(finite: int) -> None:
    if not finite:
        raise EngineError(
            "the model's logits are not finite", fix="check its weights: training may have diverged"
        )


def _require_fit(theirs: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    has, needs = _shapes(theirs), _shapes(own)
    if has != needs:
        raise ModelError(
            "policy does not fit the engine's model",
            got=sorted(has - needs),
            expected=sorted(needs - has),
        )


def _shapes(weights: Mapping[str, Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    return {(name, tuple(weight.shape)) for name, weight in weights.items()}


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Set probabilities to zero outside the smallest set of likely tokens that reaches `top_p`."""
    sorted_BV, token_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    return probs_BV.scatter(-1, token_BV, sorted_BV.masked_fill(before_BV >= top_p, 0.0))


def _uniforms(batch: Sequence[Request], sampling: SamplingConfig) -> Tensor:
    """Random numbers in [0, 1) of each sample and step, [N, T]; each row from its seed alone."""
    count = sampling.max_new_tokens
    return torch.from_numpy(
        np.stack([np.random.default_rng(request.seed).random(count) for request in batch])
    )


def _completions(tokens_NT: Tensor, logprobs_NT: Tensor, is_end_NT: Tensor) -> list[Completion]:
    """Cut each sample after its first end token."""
    stopped_N = is_end_NT.any(1)
    lengths_N = torch.where(stopped_N, is_end_NT.int().argmax(1) + 1, tokens_NT.shape[1])
    columns = zip(
        *(x.tolist() for x in (tokens_NT, logprobs_NT, lengths_N, stopped_N)), strict=True
    )
    return [
        Completion(tuple(ids[:length]), tuple(logprobs[:length]), "stop" if stopped else "length")
        for ids, logprobs, length, stopped in columns
    ]


def _prompt_order(request: Request) -> tuple[int, tuple[int, ...]]:
    return len(request.prompt_ids), request.prompt_ids
