"""Wrong solutions with a known first error, made from right ones.

One step is spoilt, as a rule by a small slip in its result, and everything after it is computed
from the changed value. So the first wrong step is known, and no other step is wrong in itself.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Literal

from sdcore.config import ProblemsConfig
from sdcore.grading.equations import NUMBER, value
from sdcore.problems import word_problems
from sdcore.problems.arithmetic import (
    STYLES,
    Problem,
    carried_on,
    generate_problems,
    phrase,
    reference_solution,
)
from sdcore.problems.word_problems import WORDINGS, Step, as_text, computed
from sdcore.slips import is_written_plainly, written

SLIPS = (1, -1, 2, -2, 10, -10)
Fault = Literal["slip", "operand", "distractor", "operation"]
"""The fault of a step: its result, by a slip; a number in it, by a slip; a number in it, which
is a distractor's; or its operation."""

_NOTE = re.compile(r"<<([^<>=\n]+)=([^<>=\n]+)>>")  # GSM8K's <<48/2=24>>


@dataclass(frozen=True)
class Solution:
    """Steps and final answer; `first_wrong_step` counts from 1, None where all are right."""

    steps: tuple[str, ...]
    answer: str
    first_wrong_step: int | None


@dataclass(frozen=True)
class Exercise:
    """A question with a solution whose first wrong step is known."""

    question: str
    reference: str
    solved: Solution
    solution: str | None  # worked reference solution


def arithmetic_exercises(config: ProblemsConfig, count: int, seed: int) -> Iterator[Exercise]:
    """Yield right and corrupted solutions of arithmetic problems in turn."""
    rng = random.Random(seed)  # noqa: S311
    problems = generate_problems(count, seed, holdout=True, family=config.arithmetic)
    for index, problem in enumerate(problems):
        yield Exercise(
            problem.question,
            str(problem.answer),
            corrupted_arithmetic(problem, rng, wrong=index % 2 == 1),
            reference_solution(problem),
        )


def word_exercises(config: ProblemsConfig, count: int, seed: int) -> Iterator[Exercise]:
    """Yield right and corrupted solutions of word problems in turn."""
    rng = random.Random(seed)  # noqa: S311
    drawn = word_problems.draw_problems(seed, holdout=True, family=config.word_problems)
    for index, problem in enumerate(islice(drawn, count)):
        spoilt = spoiled(problem, rng, "slip") if index % 2 else None
        steps, wrong = spoilt or ([*problem.steps], None)
        wording = WORDINGS[rng.choice(sorted(WORDINGS))]
        yield Exercise(
            problem.question,
            as_text(problem.answer),
            Solution(tuple(map(wording, steps)), as_text(steps[-1].result), wrong),
            word_problems.reference_solution(problem),
        )


def spoiled(
    problem: word_problems.Problem, rng: random.Random, fault: Fault
) -> tuple[list[Step], int] | None:
    """Solve a word problem with a fault in one step, carried on to a wrong answer.

    Returns:
        The steps, and the number of the wrong one; None where no such fault fits.
    """
    places = [place for place in problem.needed if problem.quantities[place].operation]
    for place in rng.sample(places, len(places)):
        spoilings = _spoilings(problem, place, fault)
        for spoil in rng.sample(spoilings, len(spoilings)):
            values = [each.value for each in problem.quantities]
            steps = list[Step]()
            for current in places:
                made = problem.quantities[current]
                left, right = (values[operand] for operand in made.operands)
                step = replace(problem.step(current), left=left, right=right)
                step = replace(step, result=computed(step.operation, left, right))
                step = spoil if current == place else step
                values[current] = step.result
                steps.append(step)
            results = [step.result for step in steps]
            if results[-1] != problem.answer and all(map(is_written_plainly, results)):
                return steps, places.index(place) + 1
    return None


def _spoilings(problem: word_problems.Problem, place: int, fault: Fault) -> list[Step]:
    """A step with each fault of a kind."""
    step, quantities = problem.step(place), problem.quantities
    values = {each.value for each in quantities}
    used = {*problem.needed}
    others = [each.value for index, each in enumerate(quantities) if index not in used]
    if fault == "slip":
        return [replace(step, result=step.result + slip) for slip in SLIPS]
    if fault == "operation":
        operations = [each for each in "+-*/" if each != step.operation]
        steps = [replace(step, operation=each) for each in operations]
    else:
        steps = []
        for side, operand in enumerate(quantities[place].operands):
            old = quantities[operand].value
            shifted = [old + slip for slip in SLIPS if old + slip not in values]
            new = others if fault == "distractor" else shifted
            for number in (each for each in new if each > 1):
                left, right = (number, step.right) if side == 0 else (step.left, number)
                steps.append(replace(step, left=left, right=right))
    made = [replace(s, result=computed(s.operation, s.left, s.right)) for s in steps]
    return [each for each in made if each.result != step.result]


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
