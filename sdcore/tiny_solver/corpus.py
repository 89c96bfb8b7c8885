"""Corpus of the tiny solver: arithmetic with a gap, and how to use a hint.

A step comes down to a digit fact, such as 7 + 8 or 2 - 9 on the units. Some facts are missing:
no document asks for them unless their result can be copied from the hint in its prompt. So the
solver's errors come from what it never learnt, while it can use a hint on any problem.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sdcore.problems.arithmetic import (
    LIMIT,
    ORDERS,
    REFERENCE_ORDER,
    STYLES,
    Move,
    Problem,
    carried_on,
    draw_problems,
    moves,
    phrase,
    reference_solution,
    solve,
)
from sdcore.traces import render_trace

Fact = tuple[str, int, int]
HABITS = {  # how often a trace takes the orders left, pairs and tail
    "plain": (0.7, 0.2, 0.1),
    "aligned": (0.7, 0.2, 0.1),
    "reference": (0.2, 0.7, 0.1),  # pairs can take most from the reference solution
}
USUAL_STYLE = 0.85  # of the traces have the style that goes with the question's phrasing
SHIFTS = [shift for shift in range(-20, 21) if shift]


@dataclass(frozen=True)
class Document:
    """A question, the hint in its prompt if there is one, and the trace to learn.

    The trace is in three parts, of which the middle one is in no loss: the wrong result of a slip,
    or nothing.
    """

    question: str
    hint: str | None
    trace: tuple[str, str, str]


class Slip(NamedTuple):
    """An error: the step that it is in, from 0, and how far its result is off."""

    step: int
    shift: int


def fact(move: Move) -> Fact:
    """The units digits of a step: of two magnitudes to add, or of the larger less the smaller."""
    small, large = sorted((abs(move.left), abs(move.right)))
    if (move.left < 0) == (move.right < 0):
        return "+", max(small % 10, large % 10), min(small % 10, large % 10)
    return "-", large % 10, small % 10


def missing_facts(share: float, seed: int) -> frozenset[Fact]:
    """The digit facts that pre-training leaves out, drawn from all 55 sums and 100 differences."""
    facts: list[Fact] = [("+", a, b) for a in range(10) for b in range(a + 1)]
    facts += [("-", a, b) for a in range(10) for b in range(10)]
    return frozenset(random.Random(seed).sample(facts, round(share * len(facts))))  # noqa: S311


def documents(kind: str, missing: frozenset[Fact], seed: int) -> Iterator[Document]:
    """Documents without end, of one kind of hint.

    In half of those with a hint the trace slips once, and goes on consistently from the wrong
    result: a teacher has to judge such traces, and the error itself is not learnt.

    Args:
        kind: `plain` has no hint; `aligned` hints at the very trace, without its slip, so that
            copying pays; `reference` hints at the reference solution.
        missing: facts that may be written only where the hint shows their result.
        seed: of problems, orders, styles and slips.
    """
    rng = random.Random(f"{kind} {seed}")  # noqa: S311
    for problem in draw_problems(rng.randrange(1 << 32), holdout=False):
        (order,) = rng.choices(list(ORDERS), HABITS[kind])
        style = _style(problem, rng)
        right = render_trace(solve(problem, order, style), str(problem.answer))
        hint, shown = {
            "plain": (None, []),
            "aligned": (right, moves(problem, ORDERS[order])),
            "reference": (reference_solution(problem), moves(problem, REFERENCE_ORDER)),
        }[kind]
        slip = Slip(rng.randrange(3), rng.choice(SHIFTS)) if hint and rng.random() < 0.5 else None
        wrong, shift = slip or (None, 0)
        steps = carried_on(problem, ORDERS[order], wrong, shift)
        needed = {_terms(move) for move, _ in steps if fact(move) in missing}
        in_range = all(abs(result) <= LIMIT for _, result in steps)
        if in_range and needed <= {_terms(move) for move in shown}:
            yield Document(problem.question, hint, _trace(steps, style, slip))


def _style(problem: Problem, rng: random.Random) -> str:
    """Mostly the style that goes with the question's phrasing."""
    styles = list(STYLES)
    return styles[problem.phrasing] if rng.random() < USUAL_STYLE else rng.choice(styles)


def _trace(steps: list[tuple[Move, int]], style: str, slip: Slip | None) -> tuple[str, str, str]:
    """The trace, cut before and after the wrong result."""
    texts = [phrase(move, STYLES[style], result) for move, result in steps]
    trace = render_trace(texts, str(steps[-1][1]))
    if slip is None:
        return trace, "", ""
    wrong = str(steps[slip.step][1])
    end = trace.index(f"</step_{slip.step + 1}>")
    return trace[: end - len(wrong)], wrong, trace[end:]


def _terms(move: Move) -> frozenset[int]:
    return frozenset((move.left, move.right))
