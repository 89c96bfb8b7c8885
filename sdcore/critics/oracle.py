"""The exact critic of the generated families: arithmetic and word problems.

The cases are those of the paper (arXiv 2606.11173): A correct; B the answer is right, but a step is
missing or wrong; C unfinished; D incorrect.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from sdcore.contexts import Case, Critique
from sdcore.critics.derivations import judged
from sdcore.critics.validation import PROSE, Submission, in_order, letters, misalignment, prefix
from sdcore.errors import DataError
from sdcore.grading.answers import grade, plain_number
from sdcore.problems import arithmetic, word_problems
from sdcore.problems.arithmetic import continue_trace, verify_steps
from sdcore.problems.word_problems import WORDINGS, Wording, around, as_text, remaining
from sdcore.traces import Trace, parse_trace, render_trace

_TIMES = re.compile(r"(?<=[\d ])(?:×|\\times|\\cdot|·|⋅|\*|x)(?=[ $\d])")
_BY = re.compile(r"(?<=[\d ])(?:÷|\\div|/)(?=[ $\d])")


@dataclass(frozen=True)
class Assessment:
    """Judgement of a trace's steps.

    Attributes:
        wrong: index of the first wrong step; None if no step is wrong.
        kept: how many leading steps stay as they are.
        rest: the steps that remain after those.
        complete: the steps come to the answer.
        undecided: why the first wrong step cannot be named; None where it can.
    """

    wrong: int | None
    kept: int
    rest: Sequence[str]
    complete: bool
    undecided: str | None = None


@dataclass(frozen=True)
class Judged:
    """A recognised question: its answer, and how a trace of it is assessed.

    `assess` takes the trace, its finished steps, and whether its answer is right.
    """

    answer: str
    assess: Callable[[Trace, Sequence[str], bool], Assessment]


def critique(question: str, reference_answer: str, trace_text: str) -> Critique:
    """Return the critique of a trace; one that is undecided or not step-aligned is marked invalid.

    Raises:
        DataError: the question is of no generated family, or the reference is not its answer.
    """
    known, trace = _recognised(question, reference_answer), parse_trace(trace_text)
    steps = _finished_steps(trace)
    right = grade(trace.answer, reference_answer).correct
    assessed = known.assess(trace, steps, right)
    if assessed.undecided is not None:
        return Critique(None, None, None, False, f"undecided: {assessed.undecided}")
    wrong = assessed.wrong
    if wrong is not None and in_order(steps[assessed.kept :], assessed.rest):
        wrong = None  # nothing is wrong with this step: one before it is missing
    found = Critique(
        case=_case(trace, wrong, right=right, complete=assessed.complete),
        first_wrong_step=None if wrong is None else wrong + 1,
        corrected=_corrected(trace, assessed.kept, assessed.rest, reference_answer),
    )
    reason = misalignment(found, Submission(question, trace_text, right, reference_answer))
    return found if reason is None else Critique(None, None, None, False, reason)


def _recognised(question: str, reference_answer: str) -> Judged:
    known = next(filter(None, (family(question) for family in _FAMILIES)), None)
    if known is None:
        raise DataError(
            "the oracle cannot judge this question",
            got=question,
            expected="a question of a generated family: arithmetic or word_problems",
            fix="use a language model as critic for other problems",
        )
    if not grade(known.answer, reference_answer).correct:
        raise DataError(
            "the reference answer is wrong",
            got=reference_answer,
            expected=known.answer,
            where=question,
        )
    return known


def _arithmetic(question: str) -> Judged | None:
    try:
        problem = arithmetic.parse_question(question)
    except DataError:
        return None

    def assess(trace: Trace, steps: Sequence[str], right: bool) -> Assessment:
        wrong = verify_steps(problem, steps)
        kept = min(trace.sound, len(steps) if wrong is None else wrong)
        hint = steps[kept] if kept < len(steps) else ""
        rest = continue_trace(problem, steps[:kept], hint=hint)
        return Assessment(wrong, kept, rest, wrong is None and not continue_trace(problem, steps))

    return Judged(str(problem.answer), assess)


def _word_problem(question: str) -> Judged | None:
    try:
        problem = word_problems.parse_question(question)
    except DataError:
        return None

    def assess(trace: Trace, steps: Sequence[str], right: bool) -> Assessment:
        stated = plain_number(trace.answer or "")
        answer = None if stated is None else Fraction(stated)
        found = judged(problem, steps, answer, right=right)
        wrong = found.first_wrong
        kept = min(trace.sound, len(steps) if wrong is None else wrong)
        results = found.results(kept)
        wording = _wording(steps[: kept + 1])
        rest = [wording(step) for step in remaining(problem, results)]
        complete = wrong is None and problem.answer in found.results(len(steps))
        return Assessment(wrong, kept, rest, complete, found.undecided)

    return Judged(as_text(problem.answer), assess)


_FAMILIES = (_arithmetic, _word_problem)


def _wording(own: Sequence[str]) -> Wording:
    """A wording of new steps in the notation of a solver's own ones."""
    text = "\n".join(own)
    if own and "=" not in text and re.search(r"\d (?:plus|minus|times|divided) ", text):
        return WORDINGS["spoken"]
    times, by = _TIMES.search(text), _BY.search(text)
    latex = "\\(" in text or "\\times" in text
    frame = r"\(EXPRESSION = {r}\)" if latex else "EXPRESSION = {r}"
    plain = own and letters(own) < PROSE
    signs = (times[0] if times else "\\times" if latex else "*", by[0] if by else "/")
    return around(frame if plain or latex else "{meaning}: " + frame, *signs)


def _finished_steps(trace: Trace) -> list[str]:
    """Return the contents of the steps, without a last one that was cut off."""
    cut_off = bool(trace.steps) and not trace.steps[-1].closed and trace.answer is None
    return [step.text for step in trace.steps[: -1 if cut_off else None]]


def _case(trace: Trace, wrong: int | None, *, right: bool, complete: bool) -> Case:
    if right:
        return "A" if complete and trace.well_formed else "B"
    return "C" if wrong is None and (trace.answer is None or not complete) else "D"


def _corrected(trace: Trace, kept: int, rest: Sequence[str], answer: str) -> str:
    """Return the first `kept` steps verbatim, then the rest; a right trace stays unchanged."""
    same = trace.answer is not None and grade(trace.answer, answer).correct
    if trace.well_formed and not rest and kept == len(trace.steps) and same:
        return trace.text
    return prefix(trace, kept) + render_trace(rest, answer, first=kept + 1)
