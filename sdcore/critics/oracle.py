"""The exact critic of the arithmetic family.

The cases are those of the paper (arXiv 2606.11173): A correct; B the answer is right, but a step is
missing or wrong; C unfinished; D incorrect.
"""

from collections.abc import Sequence

from sdcore.contexts import Case, Critique
from sdcore.critics.validation import Submission, in_order, misalignment, prefix
from sdcore.errors import DataError
from sdcore.grading.answers import grade
from sdcore.problems.arithmetic import Problem, continue_trace, parse_question, verify_steps
from sdcore.traces import Trace, parse_trace, render_trace


def critique(question: str, reference_answer: str, trace_text: str) -> Critique:
    """Return the critique of a trace; one that is not step-aligned is marked invalid.

    Raises:
        DataError: the question is not of the arithmetic family, or the reference is not its value.
    """
    problem, trace = _problem(question, reference_answer), parse_trace(trace_text)
    steps = _finished_steps(trace)
    wrong = verify_steps(problem, steps)
    kept = min(trace.sound, len(steps) if wrong is None else wrong)
    rest = continue_trace(problem, steps[:kept], hint=steps[kept] if kept < len(steps) else "")
    complete = wrong is None and not continue_trace(problem, steps)
    if wrong is not None and in_order(steps[kept:], rest):
        wrong = None  # nothing is wrong with this step: one before it is missing
    found = Critique(
        case=_case(trace, reference_answer, wrong, complete),
        first_wrong_step=None if wrong is None else wrong + 1,
        corrected=_corrected(trace, kept, rest, reference_answer),
    )
    right = grade(trace.answer, reference_answer).correct
    reason = misalignment(found, Submission(question, trace_text, right, reference_answer))
    return found if reason is None else Critique(None, None, None, False, reason)


def _problem(question: str, reference_answer: str) -> Problem:
    try:
        problem = parse_question(question)
    except DataError as error:
        raise DataError(
            "the oracle cannot judge this question",
            got=question,
            expected="a question of the arithmetic family",
            fix="use a language model as critic for other problems",
        ) from error
    if not grade(str(problem.answer), reference_answer).correct:
        raise DataError(
            "the reference answer is wrong",
            got=reference_answer,
            expected=problem.answer,
            where=question,
        )
    return problem


def _finished_steps(trace: Trace) -> list[str]:
    """Return the contents of the steps, without a last one that was cut off."""
    cut_off = bool(trace.steps) and not trace.steps[-1].closed and trace.answer is None
    return [step.text for step in trace.steps[: -1 if cut_off else None]]


def _case(trace: Trace, reference: str, wrong: int | None, complete: bool) -> Case:
    if grade(trace.answer, reference).correct:
        return "A" if complete and trace.well_formed else "B"
    return "C" if wrong is None and (trace.answer is None or not complete) else "D"


def _corrected(trace: Trace, kept: int, rest: Sequence[str], answer: str) -> str:
    """Return the first `kept` steps verbatim, then the rest; a right trace stays unchanged."""
    if trace.well_formed and not rest and kept == len(trace.steps) and trace.answer == answer:
        return trace.text
    return prefix(trace, kept) + render_trace(rest, answer, first=kept + 1)
