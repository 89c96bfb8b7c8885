"""Does an answer equal the reference? Plain numbers directly, everything else by math-verify.

Answers are text that a model wrote, and some cost a computer algebra system hours. Those are
compared in worker processes, and one that takes too long or too much memory is wrong.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import permutations

from sdcore.grading import algebra
from sdcore.grading.bounded import Exceeded, run_bounded

MAX_LENGTH = 1000  # characters
DIFFERS = "differs from the reference"

_NUMBER = re.compile(r"(-?)(\d{1,9}|[1-9]\d{0,2}(?:,\d{3}){1,2})(\.\d{1,6})?", re.ASCII)
_CURRENCY = re.compile(r"\\?[$€£¥₹]")
_UNIT = re.compile(
    r"""(?<=\d)\s+(?:
    (?!.*\b(?i:and|or|than|plus|minus|half|halves|thirds|dozen|hundred|thousand|[mbtr]+illion)\b)
    [A-Za-z]{3}[A-Za-z ]*\.?                           # 18 dollars; "2 x" is algebra
    | (?:[kcm]?m|in|ft|yd|mi)(?:\^?\{?[23]\}?|[²³])    # 10 m^2; "10m^2" is algebra
    | (?:[kcm]?m|ft|mi|k?g|m?[lL])/(?:h|hr|s|min)      # 5 km/h
    )$|\s*°\s*[CF]?$""",
    re.VERBOSE,
)
_PERCENT = re.compile(r"\s*\\?%$")
_MIXED = re.compile(r"(-?\d+)\s+(\d+)/(\d+)")  # 3 1/2
_MARKUP = re.compile(r"(?:\*\*|\\\[)(.*)(?:\*\*|\\\])", re.DOTALL)  # around the whole answer


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer; `reason` says why it is not correct."""

    correct: bool
    reason: str | None = None


def grade(answer: str | None, reference: str) -> Grade:
    """Compare an answer with the reference's final answer. Never raises, and works in any thread.

    Equal are the same text, the same plain number (``1,080``, ``$18.50``), and what math-verify
    holds to be equal. Currency signs, and a unit after a number, are ignored; ``50%`` is 50 and
    0.5.
    """
    return grade_many([answer], [reference])[0]


def grade_many(answers: Sequence[str | None], references: Sequence[str]) -> list[Grade]:
    """Grade each answer against its own reference; equal pairs are looked at once."""
    pairs = list(zip(answers, references, strict=True))
    direct = {pair: _direct(*pair) for pair in pairs}
    grades = {pair: found for pair, found in direct.items() if found}
    hard = [pair for pair in direct if pair not in grades]
    grades |= zip(hard, _compared(hard), strict=True)
    return [grades[pair] for pair in pairs]


def same_answers(answers: Sequence[str | None]) -> list[int]:
    """Group answers to one problem that the grader holds to be equal, for a majority vote.

    Returns one code per answer, counted from 0 in order of first appearance. All missing answers
    (None or blank) share one code. An answer joins the first group whose every member it equals,
    since equality is not transitive: ``50%`` equals 50 and 0.5. Plain numbers and equal texts are
    grouped without algebra.
    """
    keys = [_group_key(answer) for answer in answers]
    keyed = zip(keys, answers, strict=True)
    texts = {key: answer for key, answer in keyed if answer is not None and key is not None}
    pairs = [
        (one, other)
        for one, other in permutations(texts, 2)
        if isinstance(one, str) or isinstance(other, str)  # different numbers differ
    ]
    grades = grade_many([texts[one] for one, _ in pairs], [texts[other] for _, other in pairs])
    equal = {pair for pair, verdict in zip(pairs, grades, strict=True) if verdict.correct}
    groups: list[list[Decimal | str | None]] = []
    codes: dict[Decimal | str | None, int] = {}
    for key in dict.fromkeys(keys):
        matches = (
            code
            for code, members in enumerate(groups)
            if all({(key, member), (member, key)} <= equal for member in members)
        )
        codes[key] = next(matches, len(groups))
        if codes[key] == len(groups):
            groups.append([])
        groups[codes[key]].append(key)
    return [codes[key] for key in keys]


def _group_key(answer: str | None) -> Decimal | str | None:
    """Value of a plain number, else the text; answers with equal keys are equal."""
    if answer is None or not answer.strip():
        return None
    number = plain_number(answer)
    return answer.strip().casefold() if number is None else number


def readable_many(references: Sequence[str]) -> list[bool]:
    """Whether each text can be compared as mathematics; one that is costly to read cannot."""
    hard = [text for text in dict.fromkeys(references) if plain_number(text) is None]
    read = run_bounded(algebra.readable, [(cleaned(text),) for text in hard])
    unreadable = {text for text, found in zip(hard, read, strict=True) if found is not True}
    return [text not in unreadable for text in references]


def plain_number(text: str) -> Decimal | None:
    """The value of a plain number; None for anything else.

    Only as many digits are taken as math-verify compares exactly, so that both always agree.
    """
    match = _NUMBER.fullmatch(cleaned(text))
    return Decimal(match[0].replace(",", "")) if match else None


def _direct(answer: str | None, reference: str) -> Grade | None:
    """The verdict where it needs no algebra, else None."""
    if answer is None or not answer.strip():
        return Grade(False, "no answer")
    if answer.strip().casefold() == reference.strip().casefold():
        return Grade(True)
    if len(answer) > MAX_LENGTH:
        return Grade(False, f"longer than {MAX_LENGTH} characters")
    mine, theirs = plain_number(answer), plain_number(reference)
    if mine is not None and theirs is not None:
        return _verdict(mine == theirs)
    mine, theirs = (plain_number(_PERCENT.sub("", text)) for text in (answer, reference))
    return Grade(True) if mine is not None and mine == theirs else None


def _compared(pairs: Sequence[tuple[str | None, str]]) -> list[Grade]:
    """The verdicts by algebra."""
    calls = [(cleaned(answer or ""), cleaned(reference)) for answer, reference in pairs]
    return [_verdict(found) for found in run_bounded(algebra.equal, calls)]


def _verdict(found: bool | Exceeded) -> Grade:
    if isinstance(found, Exceeded):
        return Grade(False, found.reason)
    return Grade(True) if found else Grade(False, DIFFERS)


def cleaned(text: str) -> str:
    """Without markup, currency signs, a full stop at the end, and a unit after a number."""
    markup = _MARKUP.fullmatch(text.strip())
    plain = _CURRENCY.sub("", markup[1] if markup else text).strip()
    plain = _UNIT.sub("", plain).rstrip(". ")
    mixed = _MIXED.fullmatch(plain)
    return mixed.expand(r"\1\\frac{\2}{\3}") if mixed else plain
