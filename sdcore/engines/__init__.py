"""Sampling engines: token ids in, token ids and log-probs out; text never passes through here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from sdcore.config import LoraConfig, ModelConfig, SamplingConfig

if TYPE_CHECKING:  # naming a request needs no torch
    from sdcore.models.policies import Policy

FinishReason = Literal["stop", "length"]
OnProgress = Callable[[int, int], None]
"""Called while samples are drawn with two counts since the last call: samples finished, tokens."""


def silent(finished: int, tokens: int) -> None:
    """Ignore progress."""


OnFinished = Callable[[Mapping[int, "Completion"]], None]
"""Called with completions by the indices of their requests, as soon as they are there.

An engine may leave that out: it returns all of them in the end."""


def unheard(completions: Mapping[int, "Completion"]) -> None:
    """Leave completions until all are there."""


@dataclass(frozen=True)
class Request:
    """One sample to draw: the prompt, and the seed of all random numbers of this sample."""

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Completion:
    """One drawn sample.

    Attributes:
        token_ids: the response, end token included if one was drawn.
        logprobs: log-prob in nats of each response token under the model itself, that is at
            temperature 1 and without top-p, whatever the sampling settings were.
        finish_reason: `stop` for an end token, `length` for `max_new_tokens`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Served:
    """A policy to sample from.

    Attributes:
        policy_id: its name.
        folder: folder of its weights: an adapter, or all weights; None if only `live` holds them.
        base: folder of the model that it was trained from; for the base itself equal to `folder`.
        live: the weights, if the trainer is in this process. An engine may use them instead of the
            folder; they do not count when two records are compared.
    """

    policy_id: str
    folder: Path | None
    base: Path
    live: "Policy | None" = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Resources:
    """Resources that an engine is opened with, besides its settings.

    Attributes:
        model: the named model.
        folder: local folder with its weights and tokenizer.
        lora: the adapters that are trained; None if all weights are.
        root: the workspace, for logs.
        gpus: that a server of our own may use, by their names in CUDA_VISIBLE_DEVICES.
        share: part of each of them that it takes; None leaves it to the server.
    """

    model: ModelConfig
    folder: Path
    lora: LoraConfig | None
    root: Path
    gpus: tuple[str, ...] = ()
    share: float | None = None


class Engine(Protocol):
    """Draw samples from one policy at a time.

    Attributes:
        reads_folders: the engine reads each policy from its folder, so every round must save one.
            It samples beside the training, and for scores and a round at once: several threads may
            call `generate`, all of them for the policy that is loaded.
        update_share: share of the loaded policy's LoRA update that the sampling weights hold, 1 for
            all of it; None without an update or if the engine cannot see its weights.
    """

    reads_folders: bool
    update_share: float | None = None

    def load(self, policy: Served) -> None:
        """Sample from this policy from now on.

        Raises:
            EngineError: the engine needs the policy's folder, and there is none.
            ModelError: the weights do not fit the engine's model.
        """
        ...

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        on_progress: OnProgress = silent,
        on_finished: OnFinished = unheard,
    ) -> list[Completion]:
        """Draw one sample per request, in the order of the requests.

        Raises:
            EngineError: a request cannot be served as asked.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds: servers of its own, connections."""
        ...
