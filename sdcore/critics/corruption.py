"""Wrong solutions with a known first error, made from right ones.

One result is changed by a small slip, and everything after it is computed from the changed value.
So the first wrong step is known, and no other step is wrong in itself.
"""

import random
import re
from dataclasses import dataclass
from fractions import Fraction

from sdcore.grading.equations import NUMBER, value
from sdcore.problems.arithmetic import STYLES, Problem, carried_on, phrase
from sdcore.slips import is_written_plainly, written

SLIPS = (1, -1, 2, -2, 10, -10)

_NOTE = re.compile(r"<<([^<>=\n]+)=([^<>=\n]+)>>")  # GSM8K's <<48/2=24>>


@dataclass(frozen=True)
class Solution:
    """Steps and final answer; `first_wrong_step` counts from 1, None where all are right."""

    steps: tuple[str, ...]
    answer: str
    first_wrong_step: int | None


def corrupted_arithmetic(problem: Problem, rng: random.Random, *, wrong: bool) -> Solution:
    """Solve a problem of the arithmetic family in a random order and style."""
    order = problem.orders[rng.choice(sorted(problem.orders))]
    style = STYLES[rng.choice(sorted(STYLES))]
    place = rng.randrange(len(order)) if wrong else None
    shift = rng.choice(SLIPS) if wrong else 0
    done = carried_on(problem, order, place, shift)
    steps = tuple(phrase(move, style, result) for move, result in done)
    return Solution(steps, str(done[-1][1]), None if place is None else place + 1)


def gsm8k_solution(worked: str) -> Solution:
    """Return a worked solution in GSM8K's form, one step per line, without calculator notes."""
    lines, answer = _lines(worked)
    return Solution(tuple(_NOTE.sub("", line) for line in lines), answer, None)


def corrupted_gsm8k(question: str, worked: str, rng: random.Random) -> Solution | None:
    """Change one calculator result of a worked solution, and all that depends on it.

    None where no change leads to a wrong answer, or where it is uncertain which numbers depend on
    it: a changed result may occur neither in the question nor twice.
    """
    lines, answer = _lines(worked)
    results = [_number(note[2]) for line in lines for note in _NOTE.finditer(line)]
    asked = {_number(number) for number in NUMBER.findall(question)}
    places = list(range(len(results)))
    for place in rng.sample(places, len(places)):
        for slip in rng.sample(SLIPS, len(SLIPS)):
            found = _propagated(lines, answer, place, slip)
            if found is None:
                continue
            solution, changed = found
            if all(old not in asked and results.count(old) == 1 for old in changed):
                return solution
    return None


def _lines(worked: str) -> tuple[list[str], str]:
    body, _, answer = worked.rpartition("####")
    return [line.strip() for line in body.splitlines() if line.strip()], answer.strip()


def _propagated(
    lines: list[str], answer: str, place: int, slip: int
) -> tuple[Solution, dict[Fraction, Fraction]] | None:
    """Return the solution after a slip, and each changed result with its new value."""
    changed: dict[Fraction, Fraction] = {}
    steps, wrong, seen = [], 0, 0
    for number, line in enumerate(lines, 1):
        parts, end = [], 0
        for note in _NOTE.finditer(line):
            parts.append(_renumbered(line[end : note.start()], changed))
            end = note.end()
            new = value(_renumbered(note[1], changed))
            old = _number(note[2])
            if new is None or old is None or (not changed and value(note[1]) != old):
                return None
            if seen == place:
                new, wrong = new + slip, number
            if new != old:
                changed[old] = new
            seen += 1
        steps.append("".join(parts) + _renumbered(line[end:], changed))
    final = _renumbered(answer, changed)
    if final == answer or not all(is_written_plainly(new) for new in changed.values()):
        return None
    return Solution(tuple(steps), final, wrong), changed


def _renumbered(text: str, changed: dict[Fraction, Fraction]) -> str:
    """Return a text with each changed number replaced by its new value."""

    def new(match: re.Match[str]) -> str:
        old = _number(match[0])
        return match[0] if old not in changed else written(changed[old])

    return NUMBER.sub(new, text) if changed else text


def _number(text: str) -> Fraction | None:
    plain = text.strip().lstrip("$").replace(",", "")
    return Fraction(plain) if re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)", plain) else None
