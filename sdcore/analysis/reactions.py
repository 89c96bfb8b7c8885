"""Reactions of a continuation to the error that it follows: does it repeat, repair or ignore it?"""

from decimal import Decimal
from typing import Literal

from sdcore.grading.notation import numbers
from sdcore.traces import Trace, parse_trace

Reaction = Literal["repeats", "repairs", "ignores"]
REACTIONS: tuple[Reaction, ...] = ("repeats", "repairs", "ignores")


def reaction(question: str, text: str, corrected: str, wrong_step: int) -> Reaction | None:
    """Return how a trace goes on after its first wrong step.

    The wrong step and its correction differ in some numbers. The first of these that comes after
    the wrong step decides: a wrong one repeats the error, a corrected one repairs it; if none
    comes, the trace ignores it. Numbers of the question and of the steps before are no evidence,
    since a trace may take them from there. Signs do not count.

    For `47+23=71`, corrected to `47+23=70`: `71-31=40` repeats, `70-31=39` repairs, `54-31=23`
    ignores.

    Args:
        question: the problem.
        text: the whole trace, continuation included.
        corrected: the corrected trace.
        wrong_step: number of the first wrong step, from 1.

    Returns:
        The reaction, or None where the wrong step or its correction has no number of its own.
    """
    trace, right = parse_trace(text), parse_trace(corrected)
    before = [step.text for step in trace.steps[: wrong_step - 1]]
    wrong = set(numbers(trace.steps[wrong_step - 1].text))
    better = set(_corrected_numbers(right, wrong_step))
    known = {number for part in (question, *before) for number in numbers(part)}
    slips, fixes = wrong - better - known, better - wrong - known
    if not (slips and fixes):
        return None
    rest = _numbers_after(trace, trace.steps[wrong_step - 1].outer_end)
    first = next((number for number in rest if number in slips | fixes), None)
    return "ignores" if first is None else "repeats" if first in slips else "repairs"


def _corrected_numbers(corrected: Trace, wrong_step: int) -> list[Decimal]:
    """Numbers of the corrected step or, if the correction has no such step, of its answer."""
    steps = corrected.steps[wrong_step - 1 : wrong_step]
    return numbers(steps[0].text if steps else corrected.answer or "")


def _numbers_after(trace: Trace, start: int) -> list[Decimal]:
    """Numbers of the text from a character on, without those in the tags."""
    edges = [start, *(edge for tag in trace.tags for edge in tag if tag[0] >= start)]
    pieces = zip(edges[::2], [*edges[1::2], len(trace.text)], strict=True)
    return [number for a, b in pieces for number in numbers(trace.text[a:b])]
