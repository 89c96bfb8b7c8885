"""Wrong solutions made from right ones: one slip in a calculation, carried on to the answer."""

import random
import re
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import combinations

from sdcore.grading.answers import plain_number
from sdcore.grading.equations import NUMBER, numbers

SLIPS = (1, 2, 10)
REACH = 3  # a result is computed from two of so many numbers before it: "48 clips / 2 = 24"
_PLACES = 100  # a result has at most two decimal places

# The numbers of tags are no results: "<step_2>48/2=24</step_2>" has 48, 2 and 24.
_NUMBERS = re.compile(rf"</?(?:step_\d+|answer)>|(?P<number>{NUMBER.pattern})")

Operation = Callable[[Fraction, Fraction], Fraction]
_OPERATIONS: tuple[Operation, ...] = (
    lambda x, y: x + y,
    lambda x, y: abs(x - y),
    lambda x, y: x * y,
    lambda x, y: x / y if y else Fraction(-1),
    lambda x, y: y / x if x else Fraction(-1),
)


def wrong_solution(question: str, solution: str, reference: str) -> str | None:
    """Return a worked solution with a slip, and with the wrong answer that follows from it.

    The first calculated number is off by one of `SLIPS`, and what is calculated from it in one
    operation is calculated again. If this does not reach the answer, the next calculated number is
    tried, the answer last. Numbers have no sign here; the text keeps it.

    Example: "48/2=24, 48+24=72" becomes "48/2=25, 48+25=73".

    Args:
        question: its numbers are given, not calculated.
        solution: ends in the right answer.
        reference: the right answer.

    Returns:
        The text, always the same for the same problem; None where the reference is not a plain
        number, or does not occur in the solution.
    """
    answer = plain_number(reference)
    matches = [match for match in _NUMBERS.finditer(solution) if match["number"]]
    old = [Fraction(match["number"].replace(",", "")) for match in matches]
    if answer is None or abs(Fraction(answer)) not in old:
        return None
    slip = random.Random(question).choice(SLIPS)  # noqa: S311
    last = max(place for place, value in enumerate(old) if value == abs(Fraction(answer)))
    given = {Fraction(number) for number in numbers(question)} - {old[last]}
    for start, value in enumerate(old):
        if value not in given and _operation(old, start):
            new = _carried_on(old, start, slip, given)
            if new[last] != old[last]:
                break
    else:
        new = [value + slip if value == old[last] else value for value in old]
    return _rewritten(solution, matches, old, new)


def is_written_plainly(number: Fraction) -> bool:
    """Return whether a positive number has at most two decimal places."""
    return number > 0 and (number * _PLACES).denominator == 1


def written(number: Fraction) -> str:
    """Return a number of at most two decimal places as text."""
    if number.denominator == 1:
        return str(number)
    return f"{Decimal(number.numerator) / number.denominator:.2f}".rstrip("0").rstrip(".")


def _operation(old: Sequence[Fraction], place: int) -> tuple[int, int, Operation] | None:
    """The nearest two numbers before a place, and the operation that makes its number of them."""
    before = range(place - 1, max(-1, place - 1 - REACH), -1)
    return next(
        (
            (left, right, operation)
            for right, left in combinations(before, 2)
            for operation in _OPERATIONS
            if operation(old[left], old[right]) == old[place]
        ),
        None,
    )


def _carried_on(
    old: Sequence[Fraction], start: int, slip: int, given: Collection[Fraction]
) -> list[Fraction]:
    """The numbers after a slip at one place."""
    changed = {old[start]: old[start] + slip}
    new = [*old[:start], changed[old[start]]]
    for place in range(start + 1, len(old)):
        value = old[place]
        if value not in given and value not in changed and (found := _operation(old, place)):
            left, right, operation = found
            result = operation(new[left], new[right])
            if result != value and is_written_plainly(result):
                changed[value] = result
        new.append(changed.get(value, value))
    return new


def _rewritten(
    text: str,
    matches: Sequence[re.Match[str]],
    old: Sequence[Fraction],
    new: Sequence[Fraction],
) -> str:
    parts, end = [], 0
    for match, was, number in zip(matches, old, new, strict=True):
        parts.append(text[end : match.start()])
        thousands = "," in match[0] and number.denominator == 1
        changed = f"{int(number):,}" if thousands else written(number)
        parts.append(match[0] if number == was else changed)
        end = match.end()
    return "".join([*parts, text[end:]])
