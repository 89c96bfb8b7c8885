"""Weightings: which response tokens a condition learns from, and how much; pure functions.

Each maps the tokens of one rollout to weights [T], none below 0. The trainer divides by the sum of
the weights, so that only their ratios count. To add one, see this package's README.

Axis: T response tokens of one rollout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdcore.config import WEIGHTINGS, WeightingSettings
from sdcore.errors import TrainingError
from sdcore.registry import loaded
from sdcore.rollouts import JudgedRollout
from sdcore.traces import Region, Tokenizer, parse_trace, relative_regions, token_offsets
from sdcore.training.batches import Example
from sdcore.training.results import TokenSignals

__all__ = ["Region", "ResponseTokens", "Weigher", "regions_of"]


@dataclass(frozen=True)
class ResponseTokens:
    """Inputs of a weighting: the response tokens of one rollout, in order.

    A row is None where the weighting does not say that it needs it. Advantages and divergences are
    in nats, by the weights before the step.
    """

    length: int
    correct: bool
    regions_T: Tensor | None = None  # a `Region` each, int64
    advantages_T: Tensor | None = None  # teacher minus student log-prob
    divergences_T: Tensor | None = None  # full-vocabulary KL, teacher to student


def all_alike(tokens: ResponseTokens) -> Tensor:
    """Weight 1 for every token."""
    return torch.ones(tokens.length)


def by_region(
    tokens: ResponseTokens, before: float, at: float, after: float, answer: float
) -> Tensor:
    """A weight per region for a wrong rollout, 1 for every token of a correct one."""
    if tokens.correct:
        return all_alike(tokens)
    assert tokens.regions_T is not None
    return torch.tensor([before, at, after, answer])[tokens.regions_T]


def until_error(tokens: ResponseTokens) -> Tensor:
    """A wrong rollout up to the end of its first wrong step; all of a correct one."""
    return by_region(tokens, before=1.0, at=1.0, after=0.0, answer=0.0)


def error(tokens: ResponseTokens) -> Tensor:
    """The first wrong step of a wrong rollout; all of a correct one."""
    return by_region(tokens, before=0.0, at=1.0, after=0.0, answer=0.0)


def by_position(tokens: ResponseTokens, floor: float, centre: float, width: float) -> Tensor:
    """floor + (1 − floor) · σ((p − centre) / width), where p = (t − ½) / T for token t of 1 … T.

    The form and the defaults are those of PW-OPSD (arXiv 2605.21606 and its authors' code), in
    which early tokens count least. There the loss of a sequence is divided by its length, here that
    of the batch by the sum of all weights.
    """
    share_T = (torch.arange(tokens.length) + 0.5) / tokens.length
    return floor + (1 - floor) * torch.sigmoid((share_T - centre) / width)


def by_advantage(tokens: ResponseTokens, bound: float) -> Tensor:
    """min(|advantage|, bound) / bound."""
    assert tokens.advantages_T is not None
    return (tokens.advantages_T.abs() / bound).clamp(max=1.0)


def by_relevance(tokens: ResponseTokens, threshold: float) -> Tensor:
    """1 where the KL from teacher to student is at least the threshold, else 0.

    The first half of Applied Compute's relevance-masked self-distillation, which takes the tokens
    of largest disagreement and has a judge choose among them.
    """
    assert tokens.divergences_T is not None
    return (tokens.divergences_T >= threshold).float()


@dataclass(frozen=True)
class Weigher:
    """The weighting of a condition, ready to be applied to examples."""

    name: str
    needs: frozenset[str]
    function: Callable[[ResponseTokens], Tensor]

    @classmethod
    def of(cls, settings: WeightingSettings) -> "Weigher":
        """The weighting that the setting `tokens` names, with its settings bound."""
        entry = WEIGHTINGS[settings.kind]
        options = settings.model_dump(exclude={"kind"})
        return cls(entry.name, entry.needs, partial(loaded(entry.implementation), **options))

    @property
    def needs_signals(self) -> bool:
        """Return whether it looks at the signals of the tokens before the step."""
        return bool(self.needs & {"advantages", "divergences"})

    def weights(self, example: Example, signals: TokenSignals | None = None) -> Tensor:
        """Return the weights [T] of an example's response tokens, before any normalisation.

        A wrong rollout whose first wrong step is unknown, because no critique of it is valid, has
        weight 0 throughout if the weighting needs regions.

        Args:
            example: with `correct` and, if the weighting needs them, `regions`.
            signals: of its tokens, if the weighting needs them.

        Raises:
            TrainingError: there is no teacher to need, or the weights are not numbers from 0 on,
                one per token.
        """
        length = len(example.response_ids)
        wants_regions = "regions" in self.needs
        if wants_regions and example.regions is None:
            return torch.zeros(length)
        if "divergences" in self.needs and (signals is None or signals.kl is None):
            raise TrainingError("the weighting needs a teacher", where=self.name)
        advantages = signals.advantage if signals and "advantages" in self.needs else None
        divergences = signals.kl if signals and "divergences" in self.needs else None
        tokens = ResponseTokens(
            length,
            example.correct,
            torch.tensor(example.regions) if wants_regions else None,
            # copies: a function that changes what it is given changes no stored signal
            None if advantages is None else advantages.clone(),
            None if divergences is None else divergences.clone(),
        )
        with WEIGHTINGS.running(self.name, f"rollout {example.rollout_id}"):
            weights = self.function(tokens)
        return self._checked(weights, example)

    def _checked(self, weights: object, example: Example) -> Tensor:
        length = len(example.response_ids)
        if not (isinstance(weights, Tensor) and weights.shape == (length,)):
            shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            got: object = f"{shape}"
        else:
            weights_T = weights.detach().float().cpu()
            if (weights_T >= 0).all() and weights_T.sum().isfinite():
                return weights_T
            got = f"values from {float(weights_T.min()):g} to {float(weights_T.max()):g}"
        raise TrainingError(
            "a weighting returns something else than weights",
            got=got,
            expected=f"a tensor of {length} numbers, none below 0, with a finite sum",
            where=f"{self.name}, rollout {example.rollout_id}",
        )


def regions_of(tokenizer: Tokenizer, mine: JudgedRollout) -> Sequence[Region] | None:
    """Return where each response token is; None for a wrong rollout without a valid critique.

    Where a valid critique finds no wrong step in a wrong rollout, the answer is the error.
    """
    rollout = mine.rollout
    if not (rollout.correct or mine.valid):
        return None
    trace = parse_trace(rollout.text)
    wrong = mine.critique.first_wrong_step if mine.critique and mine.valid else None
    if wrong is None and not rollout.correct:
        wrong = len(trace.steps) + 1
    return relative_regions(trace, token_offsets(tokenizer, rollout.response_ids), wrong)
