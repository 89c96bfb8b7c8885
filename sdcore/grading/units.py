"""Units of measure that steps convert into each other."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product

# Rows of units of one kind, each with its size in the smallest of the row
_FAMILIES = tuple(
    {name: Fraction(size) for names, size in row.items() for name in names.split(" ")}
    for row in (
        {"second sec s": 1, "minute min": 60, "hour hr hrs h": 3600, "day": 86400, "week": 604800},
        {"day": 1, "week": 7, "month": 30, "year": 365},
        {"week": 1, "month": 4, "year": 52},
        {"month": 1, "year": 12, "decade": 120, "century": 1200},
        {"inch inche in": 1, "foot feet ft": 12, "yard yd yds": 36, "mile mi": 63360},
        {"mm": 1, "cm centimeter": 10, "dm": 100, "m meter metre": 1000, "km kilometer": 10**6},
        {"mg": 1, "g gram": 1000, "kg kilogram kilo": 10**6, "ton tonne": 10**9},
        {"ounce oz": 1, "pound lb lbs": 16, "ton": 32000},
        {"ml milliliter": 1, "cl": 10, "l liter litre": 1000},
        {"ounce oz": 1, "cup": 8, "pint": 16, "quart": 32, "gallon": 128},
        {"teaspoon tsp": 1, "tablespoon tbsp": 3, "cup": 48},
        {"cent penny pennie": 1, "nickel": 5, "dime": 10, "quarter": 25, "dollar": 100},
        {"": 1, "pair": 2, "dozen": 12, "hundred": 100, "thousand k": 1000, "million": 10**6,
         "billion": 10**9},
    )
)  # fmt: skip
_CALENDAR = {"day", "week", "month", "year", "decade"}
UNITS = {name for family in _FAMILIES for name in family}

SHORT = UNITS | {
    "km",
    "mph",
    "kmh",
    "pts",
    "am",
    "pm",
    "cc",
    "kw",
    "gb",
    "mb",
    "tb",
    "kb",
    "usd",
    "sq",
}
"""Words of one or two letters that are units rather than variables."""


def singular(word: str) -> str:
    """A word without the ending of its plural: hours."""
    word = word.lower().lstrip("-")
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def ratios(left: frozenset[str], right: frozenset[str]) -> set[Fraction]:
    """Return the number of right units in one left unit, for all pairs of a kind.

    A side without a unit of the kind counts as one in plain numbers, or in dollars beside cents:
    ``2.50 - 2.24 = 26 cents``.
    """
    found = set[Fraction]()
    for family in _FAMILIES:
        mine, theirs = left & family.keys(), right & family.keys()
        if mine | theirs:
            base = {"", "dollar"} & family.keys()
            sides = product(mine | base or theirs, theirs | base or mine)
            found |= {family[a] / family[b] for a, b in sides}
            # 5 days * 8 hours = 2400 minutes: the hours are converted, the days are a number
            found |= {family[a] / family[b] for a, b in product(mine | theirs, repeat=2)}
    return found


def converts(left: frozenset[str], right: frozenset[str]) -> bool:
    """Return whether units are followed by smaller ones of their kind: 3 feet = 36 inches.

    "1 inch = 5 miles" is a scale, and "1 day = 8 hours" may be a day of work.
    """
    return not left & _CALENDAR and any(
        family[mine] > family[theirs]
        for family in _FAMILIES
        for mine in left & family.keys()
        for theirs in right & family.keys() or ({""} & family.keys() if left & right else ())
    )


def totals(terms: Sequence[tuple[Fraction, str]]) -> Iterator[dict[str, Fraction]]:
    """A sum of numbers with units, in each unit of a kind: 2 hours + 30 minutes, 2 dozen + 3.

    Numbers without a unit are plain numbers, or dollars beside cents. There is no total in units
    of the calendar, since a day may be one of work.
    """
    used = {unit for _, unit in terms} - {""}
    for family in _FAMILIES if used and not used & _CALENDAR else ():
        sizes = {"": family.get("dollar"), **family}
        if all(sizes.get(unit) for _, unit in terms):
            total = sum(number * (sizes[unit] or 0) for number, unit in terms)
            yield {unit: total / size for unit, size in sizes.items() if size}


def mixed(units: frozenset[str]) -> bool:
    """Return whether there are different units of one kind: 4 pounds - 6 ounces."""
    return any(len({family[unit] for unit in units & family.keys()}) > 1 for family in _FAMILIES)
