"""Graders: how good a response is, as a reward in [0, 1]; 1 is correct.

The default, `math`, is binary: does the answer in the trace equal the reference? To use your own,
decorate a function with `@sdcore.grading.graders.grader` and name it in the experiment file:
`grader = "my_module:my_grader"`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcore.errors import DataError
from sdcore.registry import Entry, Registry, about, loaded

Grader = Callable[[str, str, str], Any]
"""Map question, reference and response to a reward in [0, 1], or to a pair of the reward and a
mapping of named values that are stored with it."""


@dataclass(frozen=True)
class Response:
    """Input of a grader, and the rollout's id for errors.

    `answer` is the one in the trace, None where there is none.
    """

    rollout_id: str
    question: str
    reference: str
    text: str
    answer: str | None


@dataclass(frozen=True)
class Reward:
    """The reward of one response in [0, 1], why it is not 1, and named values as JSON."""

    value: float
    reason: str | None = None
    details: str | None = None

    @property
    def correct(self) -> bool:
        """Return whether the reward is 1."""
        return self.value == 1


@dataclass(frozen=True)
class GraderEntry(Entry):
    """A registered grader: a function from responses to their rewards, in order."""

    implementation: Callable[[Sequence[Response]], list[Reward]] | str


DEFAULT_GRADER = "math"

GRADERS = Registry(
    "grader",
    GraderEntry,
    (
        GraderEntry(
            DEFAULT_GRADER,
            "sdcore.grading.binary:by_answer",  # imported when needed: it brings sympy
            about="1 where the answer in the trace equals the reference, else 0.",
        ),
    ),
)
"""The graders that experiment files can name."""


def grader(function: Grader) -> GraderEntry:
    """Make a function of question, reference and response a grader.

    It returns the reward, a number in [0, 1], or a pair of the reward and a mapping of named
    values, which are stored as JSON in `rollouts.grade_details`.
    """
    name = function.__name__

    def graded(responses: Sequence[Response]) -> list[Reward]:
        return [_reward(name, function, response) for response in responses]

    return GraderEntry(name, graded, about=about(function))


def grade_responses(name: str, responses: Sequence[Response]) -> list[Reward]:
    """Return the rewards of responses by a registered grader, in order.

    Raises:
        ConfigError: there is no such grader.
        DataError: the grader fails at a response, or returns no number in [0, 1].
    """
    return loaded(GRADERS[name].implementation)(responses) if responses else []


def _reward(name: str, function: Grader, response: Response) -> Reward:
    try:
        returned = function(response.question, response.reference, response.text)
    except (Exception, SystemExit) as error:
        raise _failure(name, f"{type(error).__name__}: {error}", response) from error
    pair = isinstance(returned, tuple) and len(returned) == 2
    value, details = returned if pair else (returned, None)
    try:
        reward = float(value)
    except (TypeError, ValueError, OverflowError):
        reward = math.nan
    if isinstance(value, str) or not 0 <= reward <= 1:  # NaN is in no interval
        raise _failure(name, repr(returned), response)
    reason = None if reward == 1 else f"reward {reward:g}"
    return Reward(reward, reason, _json(name, details, response))


def _json(name: str, details: Mapping[str, Any] | None, response: Response) -> str | None:
    if details is None:
        return None
    try:
        return json.dumps(dict(details), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise _failure(name, f"named values that are not JSON: {error}", response) from error


def _failure(name: str, got: str, response: Response) -> DataError:
    return DataError(
        f"the grader {name!r} gives no reward",
        got=got,
        expected="a number in [0, 1], or a pair of it and a mapping of named values",
        where=f"rollout {response.rollout_id}: {response.question}",
        fix="the grader has to cope with every response; nothing of this batch was stored",
    )
