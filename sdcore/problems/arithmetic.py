"""A procedural family of arithmetic problems in which every step can be checked.

By default four two-digit numbers are added and subtracted in three steps; an experiment may ask for
three numbers (two steps) and for another range. A trace may combine the numbers in any order and in
several phrasings; the reference solution has an order and a phrasing of its own. Whatever the
order, no intermediate result exceeds the largest operand allowed.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice

from sdcore.config import ArithmeticConfig
from sdcore.errors import DataError
from sdcore.traces import render_trace

# An order lists the two terms that each step combines: 0-3 are the operands with their signs, 4 and
# 5 the results of the first and second step. For a+b-c+d, "pairs" computes a+b, -c+d, then their
# sum. With three operands the terms are 0-2, and the result of the first step is 3.
ORDERS = {
    "left": ((0, 1), (4, 2), (5, 3)),
    "pairs": ((0, 1), (2, 3), (4, 5)),
    "tail": ((2, 3), (1, 4), (0, 5)),
}
SHORT_ORDERS = {"left": ((0, 1), (3, 2)), "tail": ((1, 2), (0, 3))}
REFERENCE_ORDER, SHORT_REFERENCE_ORDER = ((2, 3), (0, 1), (4, 5)), ((1, 2), (3, 0))

# A style has one wording for additions and one for subtractions.
STYLES = {
    "symbols": ("{x}+{y}={r}", "{x}-{y}={r}"),
    "words": ("{x} plus {y} is {r}", "{x} minus {y} is {r}"),
    "recipe": ("take {x}, add {y}: {r}", "take {x}, subtract {y}: {r}"),
    "walk": ("from {x} up {y} to {r}", "from {x} down {y} to {r}"),
}
SPACED_STYLE = ("{x} + {y} = {r}", "{x} - {y} = {r}")  # the symbols of a pretrained model
REFERENCE_STYLE = (
    "when we add {y} to {x} the result is {r}",
    "when we subtract {y} from {x} the result is {r}",
)

QUESTIONS = ("Compute {}.", "What is {}?", "Find the value of {}.", "Work out {}.")
USUAL = ArithmeticConfig()
LIMIT = USUAL.largest
DRAWS = 20  # per problem wanted, after which a small family counts as exhausted
HOLDOUT_BUCKETS = 16  # one problem in 16 is never shown in pre-training

Order = Sequence[tuple[int, int]]
Style = tuple[str, str]


@dataclass(frozen=True)
class Move:
    """One step: ``left + right``, where a subtraction has a negative ``right``."""

    left: int
    right: int

    @property
    def result(self) -> int:
        """The correct result of the step."""
        return self.left + self.right


@dataclass(frozen=True)
class Problem:
    """Three or four operands joined by operators; the first operand has the sign +."""

    operands: tuple[int, ...]
    operators: tuple[str, ...]

    @cached_property
    def terms(self) -> tuple[int, ...]:
        """The operands with their signs."""
        signs = ("+", *self.operators)
        return tuple(int(sign + str(value)) for sign, value in zip(signs, self.operands))

    @cached_property
    def expression(self) -> str:
        """The problem as a formula, such as ``47+23-31-12``."""
        rest = zip(self.operators, self.operands[1:])
        return str(self.operands[0]) + "".join(f"{sign}{value}" for sign, value in rest)

    @cached_property
    def key(self) -> str:
        """Hash of the expression, the same in every process."""
        return hashlib.sha256(self.expression.encode()).hexdigest()[:16]

    @property
    def answer(self) -> int:
        """The value of the formula."""
        return sum(self.terms)

    @property
    def orders(self) -> dict[str, Order]:
        """Orders that a trace may follow, by name."""
        return dict(ORDERS if len(self.operands) == 4 else SHORT_ORDERS)

    @property
    def reference_order(self) -> Order:
        """Order of the reference solution, which no trace follows."""
        return REFERENCE_ORDER if len(self.operands) == 4 else SHORT_REFERENCE_ORDER

    @property
    def phrasing(self) -> int:
        """Index into `QUESTIONS`, derived from the content."""
        return int(self.key, 16) // HOLDOUT_BUCKETS % len(QUESTIONS)

    @property
    def question(self) -> str:
        """The problem as text."""
        return QUESTIONS[self.phrasing].format(self.expression)

    @property
    def held_out(self) -> bool:
        """True if pre-training must never see this problem."""
        return int(self.key, 16) % HOLDOUT_BUCKETS == 0


def generate_problems(
    count: int, seed: int, *, holdout: bool, family: ArithmeticConfig = USUAL
) -> list[Problem]:
    """Draw distinct problems, the same for the same seed, from one side of the hold-out cut.

    A small family may give fewer than `count`.
    """
    problems: dict[str, Problem] = {}
    for problem in islice(draw_problems(seed, holdout=holdout, family=family), DRAWS * count):
        problems.setdefault(problem.expression, problem)
        if len(problems) == count:
            break
    return list(problems.values())


def draw_problems(
    seed: int, *, holdout: bool, family: ArithmeticConfig = USUAL
) -> Iterator[Problem]:
    """Draw problems endlessly, repeats included, from one side of the hold-out cut."""
    rng = random.Random(seed)  # noqa: S311
    while True:
        values = tuple(rng.randint(family.smallest, family.largest) for _ in range(family.operands))
        problem = Problem(values, tuple(rng.choice("+-") for _ in values[1:]))
        if _fits(problem, family.largest) and problem.held_out == holdout:
            yield problem


def parse_question(text: str) -> Problem:
    """Parse a question of this family.

    Raises:
        DataError: the text is not a question of this family.
    """
    formula = _FORMULA.search(text)
    expression = formula[0] if formula else ""
    if text.strip() not in [question.format(expression) for question in QUESTIONS]:
        raise DataError("not an arithmetic question", got=text, expected="Compute 47+23-31-12.")
    operands = tuple(int(number) for number in re.findall(r"\d+", expression))
    return Problem(operands, tuple(re.findall(r"[+-]", expression)))


def moves(problem: Problem, order: Order) -> list[Move]:
    """Return the steps of an order, with the numbers of this problem."""
    terms, steps = list(problem.terms), []
    for left, right in order:
        steps.append(Move(terms[left], terms[right]))
        terms.append(steps[-1].result)
    return steps


def phrase(move: Move, style: Style, result: int | None = None) -> str:
    """Render one step as text; a given `result` replaces the correct one."""
    template = style[0] if move.right >= 0 else style[1]
    value = move.result if result is None else result
    return template.format(x=move.left, y=abs(move.right), r=value)


def solve(problem: Problem, order: str, style: str) -> list[str]:
    """Return the steps of a correct trace in a named order and style."""
    return [phrase(move, STYLES[style]) for move in moves(problem, problem.orders[order])]


def carried_on(
    problem: Problem, order: Order, wrong: int | None = None, shift: int = 0
) -> list[tuple[Move, int]]:
    """Return the steps of an order with their results, of which one may be off.

    Args:
        problem: to be solved.
        order: of its terms.
        wrong: the step, from 0, whose result is `shift` too large; later ones follow from it.
        shift: in nothing but this step.
    """
    terms, done = list(problem.terms), list[tuple[Move, int]]()
    for index, (left, right) in enumerate(order):
        move = Move(terms[left], terms[right])
        terms.append(move.result + (shift if index == wrong else 0))
        done.append((move, terms[-1]))
    return done


def reference_solution(problem: Problem) -> str:
    """Return a correct trace in an order and a phrasing that no trace of the solver uses."""
    steps = [phrase(move, REFERENCE_STYLE) for move in moves(problem, problem.reference_order)]
    return render_trace(steps, str(problem.answer))


def verify_steps(problem: Problem, steps: Sequence[str]) -> int | None:
    """Return the index (from 0) of the first wrong step, or None if all are right.

    A step is wrong if it cannot be read, if it uses a number that is not available (the operands
    with their signs and the earlier results, once each), or if its result is not the sum.
    """
    available = Counter(problem.terms)
    for index, step in enumerate(steps):
        reading = read_step(step)
        if reading is None or not _take(available, reading.move, reading.result):
            return index
    return None


def continue_trace(problem: Problem, correct_steps: Sequence[str], hint: str = "") -> list[str]:
    """Return the steps that remain after a correct prefix, in its style and order.

    `hint` is the wrong step that comes next: it decides the order if the prefix leaves it open,
    and the style if the prefix is empty.

    Raises:
        DataError: the prefix is not correct.
    """
    if (wrong := verify_steps(problem, correct_steps)) is not None:
        place = f"{problem.expression}, step {wrong + 1}"
        raise DataError("the prefix is not correct", got=correct_steps[wrong], where=place)
    readings = [reading for step in correct_steps if (reading := read_step(step))]
    wish = read_step(hint)
    known = readings[-1:] or ([wish] if wish else [])
    style = known[0].style if known else STYLES["symbols"]
    taken = [reading.move for reading in readings]
    rest = _remaining(problem, taken, wish.move if wish else None)
    return [phrase(move, style) for move in rest]


@dataclass(frozen=True)
class Reading:
    """A parsed step: the terms that it combines, the result that it claims, and its style."""

    move: Move
    result: int
    style: Style


def read_step(text: str) -> Reading | None:
    """Parse a step in any style, with or without a full stop; None if it fits no style."""
    claim = text.strip().removesuffix(".").rstrip().replace("\N{MINUS SIGN}", "-")
    for pattern, sign, style in _PATTERNS:
        if match := pattern.fullmatch(claim):
            move = Move(int(match["x"]), sign * int(match["y"]))
            return Reading(move, int(match["r"]), style)
    return None


def _fits(problem: Problem, limit: int) -> bool:
    """True if every sum of neighbouring terms, and so every order, stays within the limit."""
    ends = combinations(range(len(problem.terms) + 1), 2)
    return all(abs(sum(problem.terms[start:end])) <= limit for start, end in ends)


def _take(available: Counter[int], move: Move, result: int) -> bool:
    """Replace the two terms of a right step by its result; False if the step is wrong."""
    needed = Counter((move.left, move.right))
    if needed - available or result != move.result:
        return False
    available -= needed
    available[result] += 1
    return True


def _remaining(problem: Problem, taken: list[Move], wish: Move | None) -> list[Move]:
    """Return the moves left in an order that begins with those taken, preferably with `wish`."""
    orders = [*problem.orders.values(), problem.reference_order]
    plans = [moves(problem, order) for order in orders]
    fitting = [plan[len(taken) :] for plan in plans if plan[: len(taken)] == taken]
    wished = [rest for rest in fitting if rest and rest[0] == wish]
    return next(iter(wished + fitting), None) or list(_leftovers(problem, taken))


def _leftovers(problem: Problem, taken: list[Move]) -> Iterator[Move]:
    """Combine, from left to right, the terms that a prefix in no known order left over."""
    terms = list(problem.terms)
    for move in taken:
        terms.remove(move.left)
        terms.remove(move.right)
        terms.insert(0, move.result)
    while len(terms) > 1:
        move = Move(terms.pop(0), terms.pop(0))
        yield move
        terms.insert(0, move.result)


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    if "=" in template:
        text = text.replace(r"\ ", r"\s*")
    groups = {"x": r"(?P<x>-?\d{1,4})", "y": r"(?P<y>\d{1,4})", "r": r"(?P<r>-?\d{1,4})"}
    return re.compile(text.format(**groups))


_PATTERNS = [
    (_pattern(template), sign, style)
    for style in (*STYLES.values(), SPACED_STYLE, REFERENCE_STYLE)
    for template, sign in zip(style, (1, -1))
]
_FORMULA = re.compile(r"\d{1,4}(?:[+-]\d{1,4}){2,3}")
