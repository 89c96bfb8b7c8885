"""What the self-teacher sees beside the question: a registry, one small function a context.

All contexts of an experiment are built from the same record of one rollout, so that they can be
compared on identical traces (arXiv 2606.11173). Texts go into the teacher prompt as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import cleandoc
from typing import Literal

from sdcore.errors import ConfigError, DataError
from sdcore.jinja_sandbox import render, variables
from sdcore.traces import Trace, parse_trace, render_rest

Case = Literal["A", "B", "C", "D"]


@dataclass(frozen=True)
class Critique:
    """What a critic says about one trace; only a valid one may be shown to the teacher."""

    case: Case | None  # A correct, B right but a step is missing, C unfinished, D incorrect
    first_wrong_step: int | None  # counted from 1
    corrected: str | None  # the corrected trace; None where invalid
    valid: bool = True
    invalid_reason: str | None = None
    attempts: int = 1  # times that the critic was asked
    tokens: int = 0  # tokens that the critic wrote
    prompt_tokens: int = 0  # tokens that the critic read
    cost: float = 0.0  # in the currency of the critic's prices
    repaired: str | None = None  # what was put right without asking again
    raw: str | None = None  # a language model's last answer as it came


@dataclass(frozen=True)
class ContextInputs:
    """All that is known about one rollout; what a source does not have is None."""

    question: str
    solution: str | None  # worked reference solution
    reference: str  # the reference's final answer
    trace: str  # the rollout's text
    correct: bool
    critique: Critique | None = None
    other_critique: Critique | None = None  # of a rollout of another question
    sibling: str | None = None  # a correct rollout of the same question


NULL = "none"  # the context under which the teacher must be the student
SOURCES = frozenset({"solution", "critique", "other_critique", "sibling"})
"""The fields of `ContextInputs` that not every rollout has."""


@dataclass(frozen=True)
class Context:
    """One way of building the context, and the inputs that it cannot do without."""

    name: str
    needs: frozenset[str]
    write: Callable[[ContextInputs], str | None]
    tests: str  # what it is for
    predicted: str = ""  # what the paper predicts, where it does

    def available(self, inputs: ContextInputs) -> bool:
        """Whether the rollout has all that this context needs."""
        return not self._missing(inputs)

    def build(self, inputs: ContextInputs) -> str | None:
        """The context as text; None is no context, where teacher and student prompt are equal.

        Raises:
            DataError: a need is missing, or is an invalid critique.
        """
        if missing := self._missing(inputs):
            raise DataError(
                f"context {self.name!r} cannot be built",
                got=", ".join(f"no valid {need}" for need in missing),
                expected=f"all of {', '.join(sorted(self.needs))}",
                where=inputs.question,
                fix="leave the rollout out where available() is false",
            )
        return self.write(inputs)

    def _missing(self, inputs: ContextInputs) -> list[str]:
        return [need for need in sorted(self.needs) if not _usable(getattr(inputs, need))]


CONTEXTS: dict[str, Context] = {}


def context(*needs: str) -> Callable[[Callable[[ContextInputs], str | None]], Context]:
    """Register a function as the context of its name, with the `ContextInputs` that it needs.

    Its docstring says in two paragraphs what the context tests and what is predicted.
    """

    def register(write: Callable[[ContextInputs], str | None]) -> Context:
        tests, _, predicted = cleandoc(write.__doc__ or "").partition("\n\n")
        about = " ".join(tests.split()), " ".join(predicted.split())
        CONTEXTS[write.__name__] = Context(write.__name__, frozenset(needs), write, *about)
        return CONTEXTS[write.__name__]

    return register


def template_context(name: str, template: str) -> Context:
    """A context of the user's own: a Jinja template that sees the fields of `ContextInputs`.

    It needs those that it names and that not every rollout has. Where it renders to nothing, the
    teacher sees no context.

    Raises:
        ConfigError: the template is malformed, or names something else.
    """
    named = variables(template)
    if unknown := named - {field.name for field in fields(ContextInputs)}:
        raise ConfigError(
            "the template names what no rollout has",
            got=", ".join(sorted(unknown)),
            expected="any of " + ", ".join(field.name for field in fields(ContextInputs)),
            where=f"contexts.{name}",
        )

    def write(inputs: ContextInputs) -> str | None:
        return render(template, **vars(inputs)) or None

    return Context(name, frozenset(named & SOURCES), write, tests=template)


@context()
def none(inputs: ContextInputs) -> str | None:
    """No context: the null check, teacher and student see the same prompt.

    Not in the paper. By construction: KL 0 and advantage 0 before the first step.
    """
    return None


@context("solution")
def reference(inputs: ContextInputs) -> str | None:
    """The reference solution, in its own words and order (the paper's RefSol).

    The paper: it teaches, but the advantage is diffusely negative, on correct rollouts too.
    """
    return inputs.solution


@context("critique")
def step_aligned(inputs: ContextInputs) -> str | None:
    """The trace verbatim up to its first error, then corrected (the paper's StepAlignFB).

    The paper: correct steps have a positive advantage, the first wrong step a sharply negative one.
    """
    return _corrected(inputs.critique)


@context()
def answer_only(inputs: ContextInputs) -> str | None:
    """The final answer and no way to it: what knowing the goal alone is worth.

    Not in the paper. Expected: an objection to the answer's tokens, little to the steps.
    """
    return f"The correct final answer is {inputs.reference}."


@context()
def outcome(inputs: ContextInputs) -> str | None:
    """One bit, whether the rollout was right: GRPO's reward in words, with no place to point at.

    Not in the paper. Expected: a weak shift that is spread over the whole trace.
    """
    return f"An attempt at this problem was {'correct' if inputs.correct else 'incorrect'}."


@context("critique")
def full_quote(inputs: ContextInputs) -> str | None:
    """The whole trace, error included, and only then the correction.

    The paper: the teacher copies the quoted error, and the advantage is diffusely positive.
    """
    trace, corrected, kept = _compared(inputs)
    rest = render_rest(corrected, kept)
    if corrected.text == trace.text:
        return trace.text
    return f"{trace.text}\nFrom step {kept + 1} on it should be: {rest}"


@context("critique")
def omission(inputs: ContextInputs) -> str | None:
    """Correct steps are said to be correct but not quoted; the rest is written out corrected.

    The paper: without a text to copy the teacher drifts, and correct steps turn negative too.
    """
    _, corrected, kept = _compared(inputs)
    praise = [f"Step {number} is correct." for number in range(1, kept + 1)]
    return " ".join([*praise, render_rest(corrected, kept)])


@context("sibling")
def sibling(inputs: ContextInputs) -> str | None:
    """A correct rollout of the same question, without a critic (arXiv 2601.20802).

    Not in the paper. Expected between the extremes: the solver's notation, but other steps.
    """
    return inputs.sibling


@context("critique", "other_critique")
def shuffled(inputs: ContextInputs) -> str | None:
    """Another question's step-aligned critique: the control, right in form and wrong in content.

    Not in the paper. Expected: no localised signal, and a gain under it would be one of format.
    It needs the rollout's own valid critique as well, so that it trains on the same rollouts as
    `step_aligned`.
    """
    return _corrected(inputs.other_critique)


def _usable(value: object) -> bool:
    return value.valid if isinstance(value, Critique) else value is not None


def _corrected(critique: Critique | None) -> str:
    if critique is None or critique.corrected is None:
        raise DataError("a valid critique has no corrected trace", got=critique)
    return critique.corrected


def _compared(inputs: ContextInputs) -> tuple[Trace, Trace, int]:
    """The trace, the corrected trace, and how many leading steps they share."""
    trace, corrected = parse_trace(inputs.trace), parse_trace(_corrected(inputs.critique))
    pairs = zip(trace.steps, corrected.steps, strict=False)
    same = [mine.text == theirs.text and mine.closed for mine, theirs in pairs]
    return trace, corrected, [*same, False].index(False)
