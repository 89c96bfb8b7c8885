"""Sampling engines: token ids in, token ids and log-probs out; text never passes through here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sdcore.config import SamplingConfig

FinishReason = Literal["stop", "length"]
OnProgress = Callable[[int, int], None]
"""Told while samples are drawn how many have finished, and how many tokens were drawn, since."""


def silent(finished: int, tokens: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Request:
    """One sample to draw: the prompt, and the seed of all random numbers of this sample."""

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Completion:
    """One drawn sample.

    Attributes:
        token_ids: the response, end token included where one was drawn.
        logprobs: log-prob in nats of each response token under the model itself, that is at
            temperature 1 and without top-p, whatever the sampling settings were.
        finish_reason: `stop` for an end token, `length` for `max_new_tokens`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Engine(Protocol):
    """Whatever draws samples."""

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        on_progress: OnProgress = silent,
    ) -> list[Completion]:
        """Draw one sample a request, in the order of the requests.

        Raises:
            EngineError: a request cannot be served as asked.
        """
        ...
