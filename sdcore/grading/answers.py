"""Grade an answer against a reference: plain values directly, everything else by algebra.

Answers are text that a model wrote, and some cost a computer algebra system hours. Therefore
algebra runs in worker processes, and an answer that takes too much time or memory is wrong.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import permutations

from sdcore.grading.bounded import run_bounded
from sdcore.grading.reading import Reading, read, words
from sdcore.grading.values import same_value, value
from sdcore.grading.worker import Exceeded

MAX_LENGTH = 1000  # characters
DIFFERS = "differs from the reference"

_NUMBER = re.compile(  # 42, -$1,080.50, 7.; not 0,080
    r"\s*(-?)(?:\\?[$€£¥₹])?(\d{1,9}|[1-9]\d{0,2}(?:,\d{3}){1,2})(\.\d{1,6})?\.?\s*", re.ASCII
)

_NAME = re.compile(r"^[A-Za-z] ?= ?(?=[^=]*$)")  # x = 5


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer; `reason` says why it is not correct."""

    correct: bool
    reason: str | None = None


def grade(answer: str | None, reference: str) -> Grade:
    r"""Compare an answer with a reference. No text makes it raise, and any thread may call it.

    Equal are texts with the same value, whatever their notation: ``1,080``, ``$1080``,
    ``\(x = 1080\)`` and ``The answer is **1080 km.**``. A unit is ignored where the other side has
    none; two units are converted. ``50%`` equals 50 and 0.5. A decimal equals a value that it
    rounds to six digits. An answer that leaves an operation between plain numbers undone (``3+4``)
    is not correct.

    Raises:
        SdcoreError: the worker processes cannot run on this machine.
    """
    return grade_many([answer], [reference])[0]


def grade_many(answers: Sequence[str | None], references: Sequence[str]) -> list[Grade]:
    """Grade each answer against its own reference; equal pairs are compared once."""
    pairs = list(zip(answers, references, strict=True))
    direct = {pair: _direct(*pair) for pair in pairs}
    grades = {pair: verdict for pair, verdict in direct.items() if verdict}
    hard = [pair for pair in direct if pair not in grades]
    differences = run_bounded("sdcore.grading.algebra:difference", hard)
    for pair, difference in zip(hard, differences, strict=True):
        reason = difference.reason if isinstance(difference, Exceeded) else difference
        grades[pair] = Grade(reason is None, reason)
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
    if number is not None:
        return number
    spoken = words(answer)
    return answer.strip() if spoken is None else spoken


def readable_many(references: Sequence[str]) -> list[bool]:
    """Return whether each text can be compared, as mathematics or words, at bounded cost."""
    hard = [text for text in dict.fromkeys(references) if plain_number(text) is None]
    read = run_bounded("sdcore.grading.algebra:readable", [(text,) for text in hard])
    unreadable = {text for text, result in zip(hard, read, strict=True) if result is not True}
    return [text not in unreadable for text in references]


def plain_number(text: str) -> Decimal | None:
    """Value of a plain number such as ``-$1,080.50``; None for anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals = match.groups(default="")
    return Decimal(sign + whole.replace(",", "") + decimals)


def _direct(answer: str | None, reference: str) -> Grade | None:
    """The grade where it needs no algebra, else None."""
    if answer is None or not answer.strip():
        return Grade(False, "no answer")
    if answer.strip() == reference.strip():
        return Grade(True)
    if len(answer) > MAX_LENGTH:
        return Grade(False, f"longer than {MAX_LENGTH} characters")
    mine, theirs = plain_number(answer), plain_number(reference)
    if mine is not None and theirs is not None:
        return _verdict(mine == theirs and not _other_currency(answer, reference))
    return _by_value(answer, reference)


def _by_value(answer: str, reference: str) -> Grade | None:
    """The grade of two plain values that are written out of the ordinary, else None."""
    mine, theirs = _read(answer), _read(reference)
    if mine.percent != theirs.percent or (mine.currency and theirs.currency):
        return None
    if (mine.listed and "," in theirs.text) or (theirs.listed and "," in mine.text):
        return None  # perhaps lists
    texts = (mine.text, theirs.text)
    if not all(map(_NAME.match, texts)):  # x = 5 is 5, but not y = 5
        texts = (_NAME.sub("", mine.text), _NAME.sub("", theirs.text))
    found, wanted = map(value, texts)
    if found is None or wanted is None:
        return None
    return _verdict(same_value(found, wanted))


def _other_currency(answer: str, reference: str) -> bool:
    """Return whether both name a currency by its sign, but not the same one."""
    mine, theirs = ({sign for sign in "$€£¥₹" if sign in text} for text in (answer, reference))
    return bool(mine and theirs and mine != theirs)


@lru_cache(maxsize=1024)
def _read(text: str) -> Reading:
    return read(text)


def _verdict(equal: bool) -> Grade:
    return Grade(True) if equal else Grade(False, DIFFERS)
