"""What the tiny solver reads in pre-training: arithmetic with a gap, and how to use a hint.

A step comes down to a digit fact, such as 7 + 8 or 2 - 9 on the units. Some facts are missing:
no document asks for them unless their result can be copied from the hint in its prompt. So the
solver's errors come from what it never learnt, while it can use a hint on any problem.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from sdcore.arithmetic import (
    ORDERS,
    REFERENCE_ORDER,
    STYLES,
    Move,
    draw_problems,
    moves,
    reference_solution,
    solve,
)
from sdcore.traces import render_trace

Fact = tuple[str, int, int]


@dataclass(frozen=True)
class Document:
    """A question, the hint in its prompt if there is one, and the trace to learn."""

    question: str
    hint: str | None
    trace: str


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

    Args:
        kind: `plain` has no hint; `aligned` hints at the very trace, so that copying it pays;
            `reference` at the reference solution.
        missing: facts that may be written only where the hint shows their result.
        seed: of problems, orders and styles.
    """
    rng = random.Random(f"{kind} {seed}")  # noqa: S311
    for problem in draw_problems(rng.randrange(1 << 32), holdout=False):
        order, style = rng.choice(list(ORDERS)), rng.choice(list(STYLES))
        steps = moves(problem, ORDERS[order])
        trace = render_trace(solve(problem, order, style), str(problem.answer))
        hint, shown = {
            "plain": (None, []),
            "aligned": (trace, steps),
            "reference": (reference_solution(problem), moves(problem, REFERENCE_ORDER)),
        }[kind]
        needed = {_terms(move) for move in steps if fact(move) in missing}
        if needed <= {_terms(move) for move in shown}:
            yield Document(problem.question, hint, trace)


def _terms(move: Move) -> frozenset[int]:
    return frozenset((move.left, move.right))
