"""Right traces with one slip that is carried on: what a teacher has to judge.

One result is off by a little, and everything after it follows from the wrong value. So the slip is
the only error, and the rest is as good as before.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sdcore.errors import DataError
from sdcore.grading.equations import NUMBER
from sdcore.problems.arithmetic import (
    Problem,
    carried_on,
    moves,
    parse_question,
    phrase,
    read_step,
)
from sdcore.slips import wrong_solution
from sdcore.traces import Span, parse_trace, render_trace

SHIFTS = (1, -1, 2, -2, 10, -10)


@dataclass(frozen=True)
class Slipped:
    """A trace with a slip; `wrong` is where in the text the wrong result is."""

    trace: str
    wrong: Span


def slipped(question: str, trace: str, rng: random.Random) -> Slipped | None:
    """Return a right trace with one wrong result that is carried on to the answer.

    In an arithmetic trace any step may slip, and the later ones are computed again. In others it is
    the first calculated number, as in `sdcore.slips.wrong_solution`.

    Returns:
        None where no slip leads to another answer.
    """
    parsed, problem = parse_trace(trace), _sum(question)
    if problem is not None:
        return _slipped_sum(problem, [step.text for step in parsed.steps], rng)
    wrong = wrong_solution(question, trace, parsed.answer or "")
    return None if wrong is None else Slipped(wrong, _first_change(trace, wrong))


def _sum(question: str) -> Problem | None:
    try:
        return parse_question(question)
    except DataError:
        return None  # another family


def _slipped_sum(problem: Problem, steps: Sequence[str], rng: random.Random) -> Slipped | None:
    readings = [reading for step in steps if (reading := read_step(step))]
    taken = [reading.move for reading in readings]
    order = next((each for each in problem.orders.values() if moves(problem, each) == taken), None)
    if order is None:
        return None
    place = rng.randrange(len(order))
    done = carried_on(problem, order, place, rng.choice(SHIFTS))
    texts = [
        phrase(move, reading.style, result)
        for (move, result), reading in zip(done, readings, strict=True)
    ]
    trace = render_trace(texts, str(done[-1][1]))
    end = parse_trace(trace).steps[place].end  # every style ends with the result
    return Slipped(trace, (end - len(str(done[place][1])), end))


def _first_change(right: str, wrong: str) -> Span:
    """Return the position of the first number that the two texts do not share."""
    pairs = zip(NUMBER.finditer(right), NUMBER.finditer(wrong), strict=True)
    return next(new.span() for old, new in pairs if old[0] != new[0])
