"""Does an answer equal the reference? Plain numbers directly, everything else by math-verify.

Answers are text that a model wrote: what could keep a computer algebra system busy for long is
refused as wrong, with the reason. No timeouts are used, because they work in the main thread only.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate
from typing import Any

import math_verify

MAX_LENGTH = 200  # characters
MAX_DEPTH = 8  # nested brackets

# Without these a few characters cost minutes, as 9^9^9, (x+y+z)^300, 10^9!, |x||x||x|… do.
_COSTLY = re.compile(
    r"""\^\s*-?\w+\s*\^            # a tower: a^b^c
    | \^\s*[{(][^{}()]*[\^!]       # a tower: a^{b^c}, a^{b!}
    | \^\s*[{(]?\s*[-+]?[\d,]{5}   # a number to a huge power
    | [)}\]]\s*\^\s*[{(]?\s*-?\d{3}  # an expression to a large power
    | \^[^)}]*[)}]\s*[)}]+\s*\^    # a power to a power
    | \d{4}\s*!                    # a large factorial
    | [)}\]!]\s*!                  # the factorial of an expression
    | (?:\|[^|]*){7}               # many absolute values
    | \\(?:int|sum|prod|lim|[dt]?binom)(?![a-z])
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(r"(-?)(\d{1,9}|[1-9]\d{0,2}(?:,\d{3}){1,2})(\.\d{1,6})?")
_UNIT = re.compile(r"(?<=\d)\s+[A-Za-z]{3}[A-Za-z ]*\.?$")  # "18 dollars"; "2 x" is algebra

# It warns, once, that timeouts are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer; `reason` says why it is not correct."""

    correct: bool
    reason: str | None = None


def grade(answer: str | None, reference: str) -> Grade:
    """Compare an answer with the reference's final answer. Never raises, and works in any thread.

    Equal are the same text, the same plain number (``1,080``, ``$18.50``), and what math-verify
    holds to be equal. A currency sign, and a unit in words after a number, are ignored.
    """
    if answer is None or not answer.strip():
        return Grade(False, "no answer")
    if answer.strip().casefold() == reference.strip().casefold():
        return Grade(True)
    if reason := refusal(answer):
        return Grade(False, reason)
    equal = _equal_numbers(answer, reference)
    equal = equivalent(answer, reference) if equal is None else equal
    return Grade(True) if equal else Grade(False, "differs from the reference")


def grade_many(answers: Sequence[str | None], references: Sequence[str]) -> list[Grade]:
    """Grade each answer against its own reference; equal pairs are looked at once."""
    pairs = list(zip(answers, references, strict=True))
    grades = {pair: grade(*pair) for pair in dict.fromkeys(pairs)}
    return [grades[pair] for pair in pairs]


def refusal(answer: str) -> str | None:
    """Why an answer is too costly to look at; None where it is not."""
    if len(answer) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    if _COSTLY.search(answer.replace("**", "^")) or _depth(answer) > MAX_DEPTH:
        return "too complex to be evaluated safely"
    return None


def plain_number(text: str) -> Decimal | None:
    """The value of a plain number; None for anything else.

    Only as many digits are taken as math-verify compares exactly, so that both always agree.
    """
    match = _NUMBER.fullmatch(_cleaned(text))
    return Decimal(match[0].replace(",", "")) if match else None


def equivalent(answer: str, reference: str) -> bool:
    """Whether math-verify holds the two to be equal; False where it cannot read one of them."""
    if refusal(reference):
        return False
    return bool(math_verify.verify(_parsed(reference), _parsed(answer), timeout_seconds=None))


def _equal_numbers(answer: str, reference: str) -> bool | None:
    """Whether two plain numbers are equal; None where one is not a plain number."""
    mine, theirs = plain_number(answer), plain_number(reference)
    return None if mine is None or theirs is None else mine == theirs


@lru_cache(maxsize=8192)
def _parsed(text: str) -> list[Any]:
    """Sympy expressions, as many as math-verify reads; the whole text is taken for the answer."""
    formula = f"${_cleaned(text)}$"
    settings = [math_verify.LatexExtractionConfig()]
    return list(math_verify.parse(formula, settings, "no_fallback", parsing_timeout=None))


def _cleaned(text: str) -> str:
    """Without currency signs, a full stop at the end, and a unit in words."""
    return _UNIT.sub("", text.replace("\\$", "").replace("$", "").strip()).rstrip(". ")


def _depth(text: str) -> int:
    """How deeply brackets are nested."""
    steps = (1 if char in "([{" else -1 for char in text if char in "()[]{}")
    return max(accumulate(steps), default=0)
