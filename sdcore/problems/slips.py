"""Right traces with one slip that is carried on: what a teacher has to judge.

One result is off by a little, and everything after it follows from the wrong value. So the slip is
the only error, and the rest is as good as before.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from sdcore.errors import DataError
from sdcore.grading.equations import NUMBER, value
from sdcore.problems.arithmetic import (
    Problem,
    carried_on,
    moves,
    parse_question,
    phrase,
    read_step,
)
from sdcore.traces import Span, parse_trace, render_trace

SHIFTS = (1, -1, 2, -2, 10, -10)

_PLACES = 100  # a result has at most two decimal places
_EQUALITY = re.compile(  # 48 / 2 = 24, $5.50 + (2 * 3) = $11.50
    rf"(?P<left>[$(]*\d[\d.,$() ]*[-+*/×÷][-+*/×÷\d.,$() ]*)=\s*\$?(?P<right>{NUMBER.pattern})"
    r"(?![\d/*+×÷-])"
)


@dataclass(frozen=True)
class Slipped:
    """A trace with a slip; `wrong` is where in the text the wrong result is."""

    trace: str
    wrong: Span


def slipped(question: str, trace: str, rng: random.Random) -> Slipped | None:
    """Return a right trace with one wrong result that is carried on to the answer.

    Arithmetic traces are computed again from the wrong result. In other traces equalities such as
    48 / 2 = 24 are: their results, and the same numbers wherever they come later.

    Returns:
        None where no slip leads to another answer, or where it is uncertain what depends on it: a
        changed number may occur neither in the question nor as the result of two equalities.
    """
    parsed = parse_trace(trace)
    steps = [step.text for step in parsed.steps]
    problem = _sum(question)
    if problem is not None:
        return _slipped_sum(problem, steps, rng)
    return _slipped_text(question, steps, parsed.answer or "", rng)


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
    result = str(done[place][1])
    return _rendered(texts, str(done[-1][1]), place, len(texts[place]) - len(result), result)


def _slipped_text(
    question: str, steps: Sequence[str], answer: str, rng: random.Random
) -> Slipped | None:
    results = [number for step in steps for number in _results(step)]
    asked = {_number(text) for text in NUMBER.findall(question)}
    for place in rng.sample(range(len(results)), len(results)):
        for shift in rng.sample(SHIFTS, len(SHIFTS)):
            found = _Propagation(place, shift).of(steps, answer)
            if found is None:
                continue
            trace, changed = found
            if all(old not in asked and results.count(old) == 1 for old in changed):
                return trace
    return None


class _Propagation:
    """One slip on its way through a solution: numbers that have changed, by their old values."""

    def __init__(self, place: int, shift: int) -> None:
        self._place, self._shift = place, shift
        self._changed: dict[Fraction, Fraction] = {}
        self._seen, self._computable = 0, True
        self._wrong: tuple[int, int, str] | None = None  # step, character in it, written result

    def of(
        self, steps: Sequence[str], answer: str
    ) -> tuple[Slipped, Mapping[Fraction, Fraction]] | None:
        """Return the solution after the slip, and each changed number with its new value."""
        texts = [self._step(number, step) for number, step in enumerate(steps)]
        final = renumbered(answer, self._changed)
        plain = all(new > 0 and (new * _PLACES).denominator == 1 for new in self._changed.values())
        if self._wrong is None or final == answer or not (plain and self._computable):
            return None
        step, character, result = self._wrong
        return _rendered(texts, final, step, character, result), self._changed

    def _step(self, number: int, step: str) -> str:
        text, end = "", 0
        for match in _equalities(step):
            text += renumbered(step[end : match.start("right")], self._changed)
            old = _number(match["right"])
            new = value(renumbered(match["left"], self._changed))
            end = match.end("right")
            if new is None:  # a division by zero
                self._computable, new = False, old
            if self._seen == self._place:
                new += self._shift
                self._wrong = number, len(text), _written(new)
            self._seen += 1
            if new != old:
                self._changed[old] = new
            text += _written(new) if new != old else match["right"]
        return text + renumbered(step[end:], self._changed)


def _equalities(step: str) -> list[re.Match[str]]:
    """The equalities of a step that hold."""
    return [
        match
        for match in _EQUALITY.finditer(step)
        if value(match["left"]) == _number(match["right"])
    ]


def _results(step: str) -> list[Fraction]:
    return [_number(match["right"]) for match in _equalities(step)]


def _rendered(steps: Sequence[str], answer: str, step: int, character: int, result: str) -> Slipped:
    trace = render_trace(steps, answer)
    start = parse_trace(trace).steps[step].start + character
    return Slipped(trace, (start, start + len(result)))


def renumbered(text: str, changed: Mapping[Fraction, Fraction]) -> str:
    """Return a text with each changed number replaced by its new value."""

    def new(match: re.Match[str]) -> str:
        old = _number(match[0])
        return match[0] if old not in changed else _written(changed[old])

    return NUMBER.sub(new, text) if changed else text


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _written(number: Fraction) -> str:
    return f"{float(number):.2f}".rstrip("0").rstrip(".") if number.denominator > 1 else str(number)
