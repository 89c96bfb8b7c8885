"""Plain numbers as exact values, and when two of them are the same."""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import floor, log10

DECIMALS = 6  # a decimal equals a value that it rounds to so many places, or significant digits

_LARGEST_EXPONENT = 5000  # of ten, in a number that is read exactly
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_VALUE = re.compile(
    rf"""(?P<sign>[-+])?\s*
    (?:  (?P<whole>{_DECIMAL})??                                     # 3.5
         (?:\s*\\[dtc]?frac\s*\{{\s*(?P<top>{_DECIMAL})\s*\}}\s*\{{\s*(?P<bottom>{_DECIMAL})\s*\}})?
    )
    (?:\s*(?:\\cdot|\\times|\*)\s*10\s*\^\s*\{{?\s*(?P<exponent>[-+]?\d{{1,5}})\s*\}}?)?  # 3.5*10^6
    """,
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True)
class Value:
    """An exact rational number; `decimal` where it was written with a decimal point."""

    exact: Fraction
    decimal: bool = False


def value(text: str) -> Value | None:
    r"""Exact value of a decimal, fraction, mixed number or number in scientific notation.

    None for anything else. Takes what `read` returns: ``-3\frac{1}{2}``, ``1/3``,
    ``1.6\cdot 10^{-19}``.
    """
    match = _VALUE.fullmatch(text)
    if match is None:
        return None
    whole, top, bottom, exponent = match["whole"], match["top"], match["bottom"], match["exponent"]
    if (whole is None and bottom is None) or (bottom is not None and Fraction(bottom) == 0):
        return None
    if exponent is not None and abs(int(exponent)) > _LARGEST_EXPONENT:
        return None
    exact = Fraction(whole or 0)
    if bottom is not None:
        exact += Fraction(top) / Fraction(bottom)
    if exponent is not None:
        exact *= Fraction(10) ** int(exponent)
    negative = match["sign"] == "-"
    return Value(-exact if negative else exact, "." in text or exponent is not None)


def same_value(one: Value, other: Value) -> bool:
    """Return whether two values are equal, or round to the same six decimals if one is a decimal.

    Six significant digits count where they are finer, so that tiny numbers stay distinct.
    """
    if not (one.decimal or other.decimal):
        return one.exact == other.exact
    places = decimal_places([one.exact, other.exact])
    return round(one.exact, places) == round(other.exact, places)


def decimal_places(values: list[Fraction]) -> int:
    """Decimal places that give the smallest non-zero value its six significant digits."""
    smallest = min((abs(value) for value in values if value), default=Fraction(1))
    magnitude = log10(smallest.numerator) - log10(smallest.denominator)  # no float is so large
    return max(DECIMALS, DECIMALS - 1 - floor(magnitude))
