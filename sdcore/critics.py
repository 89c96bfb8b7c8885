"""Step-aligned critiques: the trace verbatim up to its first error, and corrected from there on.

The cases are those of the paper (arXiv 2606.11173): A correct; B the answer is right, but a step is
missing or wrong; C unfinished; D incorrect. The oracle judges the arithmetic family exactly.
"""

import re
from collections.abc import Sequence

from sdcore.arithmetic import Problem, continue_trace, parse_question, verify_steps
from sdcore.config import ProblemsConfig
from sdcore.contexts import Case, Critique
from sdcore.errors import DataError
from sdcore.grading import grade
from sdcore.traces import Trace, parse_trace, render_trace

ORACLE = "oracle"


def has_oracle(problems: ProblemsConfig) -> bool:
    """Whether the oracle can judge these problems."""
    return problems.source == "arithmetic"


def critique(question: str, reference_answer: str, trace_text: str) -> Critique:
    """The oracle's critique of a trace; one that is not step-aligned comes back as invalid.

    Raises:
        DataError: the question is not of the arithmetic family, or the reference is not its value.
    """
    problem, trace = _problem(question, reference_answer), parse_trace(trace_text)
    steps = _finished_steps(trace)
    wrong = verify_steps(problem, steps)
    kept = min(trace.sound, len(steps) if wrong is None else wrong)
    rest = continue_trace(problem, steps[:kept], hint=steps[kept] if kept < len(steps) else "")
    complete = wrong is None and not continue_trace(problem, steps)
    if wrong is not None and _in_order(steps[kept:], rest):
        wrong = None  # nothing is wrong with this step: one before it is missing
    found = Critique(
        case=_case(trace, reference_answer, wrong, complete),
        first_wrong_step=None if wrong is None else wrong + 1,
        corrected=_corrected(trace, kept, rest, reference_answer),
    )
    reason = validate_critique(found, trace_text, reference_answer)
    return found if reason is None else Critique(None, None, None, False, reason)


def validate_critique(critique: Critique, trace_text: str, reference_answer: str) -> str | None:
    """Why a critique is not step-aligned with the trace; None where it is."""
    trace, corrected = parse_trace(trace_text), parse_trace(critique.corrected or "")
    right = grade(trace.answer, reference_answer).correct
    if not corrected.well_formed:
        return f"the corrected trace is not well-formed: {corrected.flaw}"
    if not grade(corrected.answer, reference_answer).correct:
        return (
            f"the corrected trace ends in {corrected.answer}, the reference in {reference_answer}"
        )
    if critique.case is None or (critique.case in "AB") != right:
        return f"case {critique.case}, but the trace's answer is {'right' if right else 'wrong'}"
    if critique.case == "A":
        return None if corrected.text == trace_text else "case A, but the trace was changed"
    if critique.first_wrong_step is None:
        right_steps = [step.text for step in trace.steps[: trace.sound]]
        kept = _in_order(right_steps, [step.text for step in corrected.steps])
        return None if kept else "a right step is not repeated verbatim and in order"
    return _misaligned(trace, corrected, critique.first_wrong_step)


def _problem(question: str, reference_answer: str) -> Problem:
    try:
        problem = parse_question(question)
    except DataError as error:
        raise DataError(
            "the oracle cannot judge this question",
            got=question,
            expected="a question of the arithmetic family",
            mend="other problems need a language model as critic",
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
    """Contents of the steps, without a last one that the trace was cut off in."""
    cut_off = bool(trace.steps) and not trace.steps[-1].closed and trace.answer is None
    return [step.text for step in trace.steps[: -1 if cut_off else None]]


def _case(trace: Trace, reference: str, wrong: int | None, complete: bool) -> Case:
    if grade(trace.answer, reference).correct:
        return "A" if complete and trace.well_formed else "B"
    return "C" if wrong is None and (trace.answer is None or not complete) else "D"


def _corrected(trace: Trace, kept: int, rest: Sequence[str], answer: str) -> str:
    """The first `kept` steps as they stand in the text, then the rest; a right trace unchanged."""
    if trace.well_formed and not rest and kept == len(trace.steps) and trace.answer == answer:
        return trace.text
    return _prefix(trace, kept) + render_trace(rest, answer, first=kept + 1)


def _prefix(trace: Trace, kept: int) -> str:
    return trace.text[: trace.steps[kept - 1].outer_end] if kept else ""


def _in_order(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether all of `part` occur in `whole`, in that order."""
    remaining = iter(whole)
    return all(text in remaining for text in part)  # `in` moves on past what it finds


def _misaligned(trace: Trace, corrected: Trace, first_wrong: int) -> str | None:
    """Whether the prefix is not verbatim, or the wrong step is quoted after it."""
    if not 1 <= first_wrong <= len(trace.steps):
        return f"step {first_wrong} is called wrong, but the trace has {len(trace.steps)} steps"
    prefix = _prefix(trace, min(first_wrong - 1, trace.sound))
    if not corrected.text.startswith(prefix):
        return f"the steps before step {first_wrong} are not repeated verbatim"
    wrong = trace.steps[first_wrong - 1]
    quote = rf"(?<!\w){re.escape(wrong.text.strip())}(?!\w)"
    if wrong.closed and wrong.text.strip() and re.search(quote, corrected.text[len(prefix) :]):
        return f"step {first_wrong} is wrong, but quoted"
    return None
