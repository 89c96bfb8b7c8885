"""The two sides of a relation: their values, and whether they agree."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from sdcore.grading.exact import decimal_places, evaluate
from sdcore.grading.units import mixed, ratios, totals

MAX_READINGS = 12
SAME = Fraction(1, 10**25)  # relative; roots and pi are known to 40 digits
ROUGHLY = Fraction(1, 20)  # relative error that ≈ may have between whole numbers


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a relation, in each way that it can be read."""

    readings: tuple[str, ...] = ()  # in Python's notation; none where it cannot be read
    written: tuple[str, ...] = ()  # its numbers as they are in the text
    terms: tuple[tuple[Fraction, str], ...] = ()  # with units, where it is a sum of numbers
    calculated: bool = False  # it is more than a number
    fraction: bool = False  # it is a fraction or percentage, maybe of what words name
    divided: bool = False
    summed: bool = False
    alone: bool = False  # nothing else stands between the relations or marks around it
    percent: bool = False
    roughly: bool = False
    units: frozenset[str] = frozenset()
    letters: frozenset[str] = frozenset()
    start: int = 0
    end: int = 0


def first_number(side: Side) -> Side:
    """Return the side that has a side's first number only."""
    sign = "-" if side.readings[0].lstrip("( ").startswith("-") else ""
    return Side((sign + side.written[0],), side.written[:1])


def equal(left: Side, right: Side) -> bool:
    """Return whether two readings have the same value in units of one kind."""
    return any(abs(mine - theirs) <= SAME * abs(theirs) for mine, theirs in _pairs(left, right))


def _pairs(left: Side, right: Side) -> list[tuple[Fraction, Fraction]]:
    """Values of both sides that may be meant to be equal, in units of the right."""
    named = {unit for _, unit in left.terms}
    sums = [*totals(left.terms)]
    mine = [total[unit] for total in sums for unit in right.units & total.keys() or named]
    if len(named) < 2 or "" in named or not mine:  # not 2 hours + 30 minutes = 32
        mine += [one * scale for one, scale in product(_values(left), _scales(left, right))]
    return list(product(mine, _values(right)))


def _scales(left: Side, right: Side) -> set[Fraction]:
    """Factors by which a value on the left may be multiplied for its unit on the right."""
    percent = {Fraction(100), Fraction(1, 100)} if left.percent or right.percent else set()
    return {Fraction(1), *ratios(left.units, right.units)} | percent


def agree(left: Side, right: Side, relation: str) -> bool:
    """Return whether a reading of the left is one of the right, which may be rounded."""
    if right.calculated and not left.calculated:  # 0.33 = 1/3
        left, right = right, left
    cents = "cent" in left.units and any("." in number for number in left.written)
    pairs = _pairs(left, right)
    several = left.summed and (mixed(left.units) or cents) and not [*totals(left.terms)]
    if not pairs or several or (right.summed and mixed(right.units)):
        return True  # 2 * $1.50 + 50 cents
    roughly = relation.endswith("approx") or left.roughly or right.roughly
    return any(_close(mine, theirs, left, right, roughly) for mine, theirs in pairs)


def _values(side: Side) -> list[Fraction]:
    values = map(evaluate, side.readings[:MAX_READINGS])
    return [value for value in values if value is not None]


def _close(mine: Fraction, theirs: Fraction, left: Side, right: Side, roughly: bool) -> bool:
    error = abs(mine - theirs)
    if error <= SAME * abs(theirs):
        return True
    if right.calculated:  # 1/3 * 200 = 0.33 * 200
        return left.divided and error <= _rounding(right) * abs(theirs)
    place = Fraction(1, 10 ** (decimal_places(right.written[0]) + 2 * right.percent))
    if roughly and error < max(place, ROUGHLY * abs(theirs) if place == 1 else 0):
        return True
    cut_off = abs(theirs) < abs(mine) and (left.divided or place < 1)
    return 2 * error <= place or (cut_off and error < place)


def _rounding(side: Side) -> Fraction:
    """Relative error of a product whose decimals are rounded."""
    return sum(
        (Fraction(1, 10 ** decimal_places(number)) / Fraction(number)
         for number in side.written if "." in number and Fraction(number)),
        Fraction(0),
    )  # fmt: skip
