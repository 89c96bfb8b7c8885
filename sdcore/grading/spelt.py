"""Numbers in words: ``twenty-one``, ``5 million``, ``three quarters``, ``two and a half``."""

import re
from fractions import Fraction

_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
    "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
    "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6,
    "crore": 10**7, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_SMALL = {word: n for n, word in enumerate(_UNITS)} | {
    word: 10 * n for n, word in enumerate(_TENS, 2)
}
_SPELT = re.compile(  # twenty-one, 5 million, two and a half, 3 tenths
    r"(?P<sign>-|minus |negative )?(?P<words>[\d.,]*[\s-]*[A-Za-z]+(?:[\s-]+[A-Za-z]+)*)"
)


def in_digits(text: str) -> str:
    """Write a number in words as digits: ``5 million``, ``twenty-one``, ``three quarters``."""
    match = _SPELT.fullmatch(text.strip())
    if match is None:
        return text
    number = _spelt(match["words"].lower().replace("-", " ").split())
    if number is None:
        return text
    sign = "-" if match["sign"] else ""
    if number.denominator == 1:
        return f"{sign}{number}"
    return rf"{sign}\frac{{{number.numerator}}}{{{number.denominator}}}"


def _spelt(tokens: list[str]) -> Fraction | None:
    """Value of number words, None if one is no number word."""
    if "and" in tokens[1:-1] and tokens[-1].removesuffix("s") in _PARTS:  # two and a half
        place = tokens.index("and")
        whole, part = _spelt(tokens[:place]), _spelt(tokens[place + 1 :])
        return None if whole is None or part is None or part >= 1 else whole + part
    total, part = Fraction(0), Fraction(1)
    group: Fraction | None = None
    for index, token in enumerate(tokens):
        singular = token.removesuffix("s")
        digits = token.replace(",", "")
        if re.fullmatch(r"\d+(\.\d+)?", digits) and index == 0:
            group = Fraction(digits)
        elif token in _SMALL:
            if group is not None and (group % 100 if _SMALL[token] > 9 else group % 10):
                return None  # "five six"
            group = (group or Fraction(0)) + _SMALL[token]
        elif token in ("a", "an") and index == 0 and len(tokens) > 1:
            group = Fraction(1)
        elif token in ("and",) and group is not None and 0 < index < len(tokens) - 1:
            continue
        elif singular == "hundred" or singular == "dozen":
            group = (Fraction(1) if group is None else group) * SCALES[singular]
        elif singular in SCALES:
            total, group = (
                total + (Fraction(1) if group is None else group) * SCALES[singular],
                None,
            )
        elif singular in _PARTS and index == len(tokens) - 1:
            part = Fraction(1, _PARTS[singular])
            group = Fraction(1) if group is None and index == 0 else group
        else:
            return None
    return (total + (group or 0)) * part
