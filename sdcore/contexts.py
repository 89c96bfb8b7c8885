"""Contexts: what the self-teacher sees in addition to the question, one small function each.

All contexts of an experiment are built from the same record of one rollout, so that they can be
compared on identical traces (arXiv 2606.11173). Texts go into the teacher prompt as they are.

To add one, write a function and decorate it with `@context(...)`; see sdcore/README.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import cleandoc
from typing import Literal

from sdcore.errors import ConfigError, DataError
from sdcore.jinja_sandbox import render, variables
from sdcore.registry import Entry, Registry, about
from sdcore.traces import Trace, parse_trace, render_rest

Case = Literal["A", "B", "C", "D"]


@dataclass(frozen=True)
class Critique:
    """Verdict of a critic on one trace; only a valid one may be shown to the teacher."""

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
    writer: str | None = None  # the critic that made it; None: the one that was asked


@dataclass(frozen=True)
class ContextInputs:
    """Everything known about one rollout; None where the source has no such thing."""

    question: str
    solution: str | None  # worked reference solution
    reference: str  # the reference's final answer
    trace: str  # the rollout's text
    correct: bool
    critique: Critique | None = None
    other_critique: Critique | None = None  # of a rollout of another question
    sibling: str | None = None  # a correct rollout of the same question
    other_solution: str | None = None  # worked reference solution of another training problem
    wrong_solution: str | None = None  # fluent, of the same question, with a wrong answer


def _require_fields(names: set[str], where: str) -> None:
    known = [each.name for each in fields(ContextInputs)]
    if others := names - {*known}:
        raise ConfigError(
            "a rollout has no such field",
            got=", ".join(sorted(others)),
            expected=f"any of {', '.join(known)}",
            where=where,
        )


NULL = "none"  # the context under which the teacher must be the student
SOURCES = frozenset(
    {"solution", "critique", "other_critique", "sibling", "other_solution", "wrong_solution"}
)
"""The fields of `ContextInputs` that some rollouts lack."""

Write = Callable[[ContextInputs], str | None]


@dataclass(frozen=True)
class Context(Entry):
    """One way to build the context of the teacher's prompt.

    Attributes:
        needs: fields of `ContextInputs` without which it cannot be built.
        write: the text for one rollout; None or an empty text is no context.
        predicted: what is expected of it, with the source.
    """

    needs: frozenset[str]
    write: Write
    predicted: str = ""

    @property
    def quotes_critique(self) -> bool:
        """Return whether it is made of a critique, of the rollout itself or of another one."""
        return not self.needs.isdisjoint({"critique", "other_critique"})

    def available(self, inputs: ContextInputs) -> bool:
        """Return whether the rollout has all that this context needs."""
        return not self._missing(inputs)

    def build(self, inputs: ContextInputs) -> str | None:
        """Return the context as text; None is no context: teacher and student prompt are equal.

        Raises:
            DataError: a need is missing or is an invalid critique, or what was written is no text.
            PluginError: a function from outside fails.
        """
        if missing := self._missing(inputs):
            raise DataError(
                f"context {self.name!r} cannot be built",
                got=", ".join(f"no valid {need}" for need in missing),
                expected=f"all of {', '.join(sorted(self.needs))}",
                where=inputs.question,
                fix="leave the rollout out where available() is false",
            )
        with CONTEXTS.running(self.name, inputs.question):
            text = self.write(inputs)
        if not isinstance(text, str | None):
            raise DataError(
                f"context {self.name!r} is no text",
                got=repr(text),
                expected="a string, or None for no context",
                where=inputs.question,
            )
        return text

    def _missing(self, inputs: ContextInputs) -> list[str]:
        return [need for need in sorted(self.needs) if not _usable(getattr(inputs, need))]


def context(*needs: str) -> Callable[[Write], Context]:
    """Make a function a context, with the fields of `ContextInputs` that it cannot do without.

    The first paragraph of its docstring says what the context tests, the others what is expected.
    An experiment file refers to it as `context = "my_module:my_context"`.

    Raises:
        ConfigError: a need is not a field of `ContextInputs`.
    """
    _require_fields(set(needs), f"@context({', '.join(map(repr, needs))})")

    def register(write: Write) -> Context:
        _, _, predicted = cleandoc(write.__doc__ or "").partition("\n\n")
        return Context(
            write.__name__,
            frozenset(needs),
            write,
            " ".join(predicted.split()),
            about=about(write),
        )

    return register


def template_context(name: str, template: str) -> Context:
    """Return a context written as a Jinja template over the fields of `ContextInputs`.

    It needs those fields in the template that some rollouts lack. Where it renders to nothing, the
    teacher sees no context.

    Raises:
        ConfigError: the template is malformed, or names something else.
    """
    named = variables(template)
    _require_fields(named, f"contexts.{name}")

    def write(inputs: ContextInputs) -> str | None:
        try:
            return render(template, **vars(inputs)) or None
        except ConfigError as error:
            raise ConfigError(
                f"context {name!r} does not render for a rollout",
                got=error.got,
                where=f"contexts.{name}, a {'correct' if inputs.correct else 'wrong'} rollout of: "
                f"{inputs.question}",
                fix="write it for every rollout; {% if %} leaves out what some have not, such as "
                "critique.first_wrong_step where no step is wrong",
            ) from error

    return Context(name, frozenset(named & SOURCES), write, about=template)


@context()
def none(inputs: ContextInputs) -> str | None:
    """No context: the null check, teacher and student see the same prompt.

    Not in the paper. By construction: KL 0 and advantage 0 before the first step. With a system
    message or a thinking mode of the teacher's own (`prompts.teacher_system`,
    `prompts.teacher_thinking`) it is a control: what this prompt does without any feedback. The
    preflight calls that `none with own prompt`.
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
    """The final answer without any steps: the value of knowing the answer alone.

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


@context("solution", "other_solution")
def other_reference(inputs: ContextInputs) -> str | None:
    """Another training problem's reference solution: a control for `reference`.

    Not in the paper. It is right in form, about another question, and has another answer. If
    training on it gains as much as on `reference`, what the reference says is not what helps.
    """
    return inputs.other_solution


@context("wrong_solution")
def wrong_hint(inputs: ContextInputs) -> str | None:
    """A fluent wrong solution of the same question: a control for `reference`.

    Not in the paper. The reference solution with one slip, carried on to a wrong answer; where
    none can be made, a wrong rollout of the same question in the same round. Expected: it harms,
    unless the teacher repairs it.
    """
    return inputs.wrong_solution


CONTEXTS = Registry(
    "context",
    Context,
    (
        none, reference, step_aligned, answer_only, outcome, full_quote, omission, sibling,
        shuffled, other_reference, wrong_hint,
    ),
)  # fmt: skip
"""The contexts that experiment files can name."""


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
