"""Equalities in the steps of a solution, and those among them that do not hold.

A step such as "3 boxes x 8 pencils = 24 pencils, and 24 - 5 = 19" is cut at its relations and its
punctuation marks. The exact values of what stands on both sides of a relation are compared. Where a
side can be read in more than one way, one reading that holds is enough; where it cannot be read
(it has a variable, say), the relation is left alone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from sdcore.grading.exact import evaluate
from sdcore.grading.notation import NUMBER, VERBAL, Token, numbers, tokens
from sdcore.grading.phrases import ARTICLES, CLAUSE, OPERATORS, Phrase, phrases
from sdcore.grading.sides import Side, agree, equal, first_number
from sdcore.grading.units import UNITS, converts, singular

__all__ = ["NUMBER", "Equation", "equations", "false_equation", "numbers", "value"]

MAX_PIECES = 80  # of one side

_RELATIONS = {"is", "are", "equal", "gives", "makes", "yields", "leaves", "comes", "totals"}
_NTH = {"first", "second", "other", "last", "next", "latter", "each", "every"}  # a half in time
_FACTORS = {"twice": "2", "double": "2", "thrice": "3", "triple": "3", "quadruple": "4"}
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip
_COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "seven": 7, "nine": 9}
# "3 boxes of 8 + 5 = 29": the number before may be a factor; "3 and 4 + 5 = 12": or a summand
_JOINING = {"of", "at", "for", "with", "each", "cost", "costs", "and", "per", "a", "every"}
# "5 less than 20 - 3 = 12", "the square root of 5 + 4 = 3"
_CHANGES_LEFT = {
    "than", "median", "quotient", "remainder", "ratio", "root", "squared", "cubed", "gcd", "lcm",
    "log", "mod", "as", "percentage", "times",
}  # fmt: skip
_CHANGES_WITH = _CHANGES_LEFT | {"by", "from", "to"}  # a number before: subtract 5 from 20 - 3
# "= 5 and a half", "= 3 hundred", "= 2 (mod 12)"
_CHANGES_RIGHT = {
    "half", "halve", "third", "fourth", "fifth", "sixth", "eighth", "tenth", "hundredth",
    "thousandth", "remainder", "rem", "mod", "modulo", "r", "squared", "cubed", "gross", "score",
    "ten", "trillion", "base",
}  # fmt: skip
_OF_A_SUM = {"a", "total", "of", "us", "to"}
_LEADING = {
    "only", "just", "exactly", "a", "an", "the", "total", "of", "another", "still", "to", "us",
    "me", "her", "him", "them", "you",
}  # fmt: skip
_ROUGHLY = {"about", "approximately", "roughly", "around", "nearly", "almost", "approx"}
_CONNECTORS = {"so", "thus", "then", "therefore", "hence", "since", "because", "and", "that", "but"}
_NESTED = (  # quotients of fractions
    (re.compile(r"/ ([\d.]+) / ([\d.]+)(?! \*\*)"), r"/ (\1 / \2)"),  # 60 / 3/4
    (re.compile(r"([\d.]+ / [\d.]+) / ([\d.]+) / ([\d.]+)"), r"\1 / (\2 / \3)"),  # 7/12 / 1/12
)
_MIXED = re.compile(r"(\d+) ⊕ (frac \( \d+ \) \( \d+ \))")  # 3\frac{1}{2}
_FRACTION = re.compile(r"(?P<top>\d+)/(?P<bottom>\d+)|frac\(\d+\)\(\d+\)|\([\d.]+/100\)")


def value(expression: str) -> Fraction | None:
    """Exact value of numbers joined by operators and brackets; None for anything else."""
    _, found = tokens(expression)
    if any(token.kind in ("word", "relation", "break", "odd") for token in found):
        return None
    read = phrases(found, before_relation=True)
    readings = _readings(read[0]) if len(read) == 1 and read[0].unclosed is None else ()
    return evaluate(readings[0]) if readings else None


@dataclass(frozen=True, slots=True)
class Equation:
    """A relation between two values in a text.

    Attributes:
        text: as it is written, in plain notation.
        left: what stands before the relation, in each way it can be read, in Python's notation.
        right: what stands after it.
        holds: one reading of the left agrees with one of the right, rounding allowed.
        exact: it holds without rounding.
        runs_on: it is right only in its first number: ``2 + 3 = 5`` of ``2 + 3 = 5 * 4 = 20``.
    """

    text: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    holds: bool
    exact: bool
    runs_on: bool


def equations(text: str) -> Iterator[Equation]:
    """Yield the relations of a text whose two sides can be read, in order.

    A result may be rounded to the decimal places that it is written with, where the exact value
    has more of them, and a quotient may be cut off: ``1/6 = 0.17`` and ``7/2 = 3 full boxes`` hold,
    ``19.90 + 0.05 = 20.05`` does not.
    """
    plain, found = tokens(text)
    for segments, relations in _chains(found):
        read = [
            phrases(segment, before_relation=place < len(relations))
            for place, segment in enumerate(segments)
        ]
        pairs = [(_left(read[n]), _right(read[n + 1])) for n in range(len(relations))]
        for place, (left, right) in enumerate(pairs):
            following = pairs[place + 1] if place + 1 < len(pairs) else None
            if _comparable(left, right, relations[place], first=place == 0):
                written = " ".join(plain[left.start : right.end].replace(VERBAL, "=").split())
                yield _compared(written, left, right, relations[place], following)


def false_equation(text: str) -> str | None:
    """The first equation of a text that does not hold, such as ``47+23=71``; None if all do."""
    return next((each.text for each in equations(text) if not each.holds), None)


def _compared(
    text: str, left: Side, right: Side, relation: str, following: tuple[Side, Side] | None
) -> Equation:
    meant, runs_on = right, False
    holds = agree(left, right, relation)
    if not holds and _runs_on(left, right, following):
        meant = first_number(right)
        holds = runs_on = True
    exact = holds and equal(left, meant)
    return Equation(text, left.readings, right.readings, holds, exact, runs_on)


def _chains(found: Sequence[Token]) -> Iterator[tuple[list[list[Token]], list[str]]]:
    """Text between two marks: its parts, and the relations between them."""
    segments: list[list[Token]] = [[]]
    relations: list[str] = []
    for place, token in enumerate(found):
        if token.kind == "break":
            yield segments, relations
            segments, relations = [[]], []
        elif token.kind == "relation" or _is_relation(found, place):
            segments.append([])
            relations.append(token.text)
        else:
            segments[-1].append(token)
    yield segments, relations


def _is_relation(found: Sequence[Token], place: int) -> bool:
    """Return whether a word stands for =, as in "12 * 7 is 84" and "gives a total of 84".

    After "and" it begins another statement: 12 + 3 apples and gives her 5.
    """
    token, before = found[place], found[place - 1].text.lower() if place else ""
    if token.kind != "word" or token.text.lower() not in _RELATIONS or before == "and":
        return False
    following = found[place + 1 : place + 6]
    after = next((each for each in following if each.text.lower() not in _OF_A_SUM), None)
    return after is not None and (after.kind in ("number", "open", "function") or after.text == "-")


def _left(read: Sequence[Phrase]) -> Side:
    """Return the left side of a relation: the last phrase, changed by the words before it."""
    if not read or CLAUSE & set(read[-1].after):
        return Side()  # 15 then her age = 8
    if read[-1].after[:1] == ("of",) and _FRACTION.fullmatch("".join(read[-1].pieces)):
        return Side()  # 1/3 of her age = 66/3
    last, before = read[-1], read[-1].before
    readings: tuple[str, ...] = ()
    if last.unclosed is not None:  # (so 3 + 4 = 7), or a bracket that is never closed
        readings = _readings(replace(last, pieces=[*last.pieces, ")"], unclosed=None))
        last, before = _inside(last), ()
        if not last.pieces:
            return Side()  # 5 (= 3
    side = _side(last, suffix=True)
    readings = side.readings + readings
    earlier = read[-2] if len(read) > 1 else None
    words = [word for word in before if word not in ARTICLES and word != "of"]
    if factor := _factor(before):
        readings = tuple(f"{factor}*{way}" for one in readings for way in (one, f"({one})"))
        return replace(side, readings=readings, terms=(), calculated=True, divided="/" in factor)
    if _CHANGES_LEFT & set(words[-1:]) or (
        earlier and _CHANGES_WITH & set(words if len(before) <= 4 else words[-1:])
    ):
        return Side()
    if earlier and (_measures(before) or (before == ("and",) and side.divided)):
        return Side()  # 5 ft 10 in - 4 in, 12 x 1 and 1/4
    if any(tuple(words[-len(spoken) :]) == spoken != tuple(words) for spoken in OPERATORS):
        return Side()  # her age plus 3 * 4 = 20
    if words[-1:] in (["average"], ["mean"]):
        readings += tuple(f"({one})/{len(last.written)}" for one in readings)
    if earlier and len(before) <= 6 and _JOINING & set(before) and not CLAUSE & set(before):
        readings += tuple(
            f"{one}{sign}{way}"
            for one in _readings(earlier) for way in side.readings for sign in "*+"
        )  # fmt: skip
    alone = len(read) == 1 and not set(before) - _CONNECTORS
    return replace(side, readings=readings, alone=alone)


def _right(read: Sequence[Phrase]) -> Side:
    """Return the right side of a relation: the first phrase, unless words change it."""
    if not read or read[0].unclosed is not None:
        return Side()
    before, after = set(read[0].before), read[0].after
    more = [word for word in after[:3] if word not in ("and", "a")] if "and" in after[:1] else after
    if before - _LEADING - _ROUGHLY or {*more[:1], *map(singular, more[:1])} & _CHANGES_RIGHT:
        return Side()
    if any(each.written for each in read[1:]) and (_measures(after) or {"than", "as"} & {*after}):
        return Side()  # = 5 ft 6 in, = 8 more than 2
    return replace(_side(read[0], prefix=True), roughly=bool(before & _ROUGHLY))


def _measures(words: Sequence[str]) -> bool:
    """Return whether words between two numbers are a unit only, so that both are one measure."""
    units = [word for word in words if word != "and"]
    return bool(units) and all(singular(word) in UNITS for word in units)


def _inside(phrase: Phrase) -> Phrase:
    """Return the text after the last bracket that is still open."""
    pieces = phrase.pieces[(phrase.unclosed or 0) + 1 :]
    written = phrase.written[-sum(piece[:1].isdigit() for piece in pieces) :]
    start = len(phrase.pieces) - len(pieces)
    sized = {place - start: unit for place, unit in phrase.sized.items()}
    return replace(phrase, pieces=pieces, written=written, sized=sized, unclosed=None, note=None)


def _side(phrase: Phrase, *, prefix: bool = False, suffix: bool = False) -> Side:
    """A phrase as a side; a part before or after "of" may be meant alone."""
    pieces, readings = phrase.pieces, _readings(phrase)
    if readings and "of" in pieces:  # 3/3 - 2/3 = 1/3 of her money
        place = pieces.index("of")
        whole = pieces[place + 1 :] if suffix and len(pieces) > place + 2 else []
        readings += _readings(replace(phrase, pieces=pieces[:place] if prefix else whole))
    if readings and suffix and phrase.listed:  # - 3 * 4 = 12
        readings += _readings(replace(phrase, pieces=pieces[1:]))
    return Side(
        readings=readings,
        written=tuple(phrase.written),
        terms=phrase.terms(),
        calculated=_is_calculated(pieces),
        fraction=not phrase.spoken and bool(_FRACTION.fullmatch("".join(pieces))),
        divided=bool({"/", "frac", "of"} & set(pieces)),
        summed=bool({"+", "-"} & set(pieces)),
        percent=any(piece.endswith("/100)") for piece in pieces),
        units=frozenset(phrase.units),
        letters=frozenset(phrase.letters),
        start=phrase.start,
        end=phrase.end,
    )


def _is_calculated(pieces: Sequence[str]) -> bool:
    """Return whether pieces are more than a number with a sign or in brackets."""
    inner = [piece for piece in pieces if piece not in ("(", ")")]
    return len(inner) > 1 + (inner[:1] == ["-"]) or any(
        "+" in piece or piece.startswith(("sqrt", "factorial")) for piece in inner
    )


def _readings(phrase: Phrase) -> tuple[str, ...]:
    """A phrase in Python's notation, the likeliest reading first."""
    pieces = phrase.pieces
    if phrase.odd or not pieces or len(pieces) > MAX_PIECES:
        return ()
    if 0 < len(phrase.letters) < len(phrase.written) and {"+", "-"} & set(pieces):
        return ()  # 2 m + 3 is algebra, 2 m + 3 m a length
    ways = [pieces]
    if phrase.note is not None:  # 20 (5 * 4)
        ways.append(pieces[: phrase.note])
    if len(pieces) == 3 and pieces[1] in "+-" and pieces[2].endswith("/100)"):  # 80 - 25%
        ways.append([pieces[0], "*", "(", "1", pieces[1], pieces[2], ")"])
    if "of" in pieces and ")" not in pieces[pieces.index("of") :]:  # 20% of 50 + 10
        place = pieces.index("of")
        ways.append([*pieces[:place], "*", "(", *pieces[place + 1 :], ")"])
    texts = [" ".join(way).replace("of", "*") for way in ways]
    texts += [
        pattern.sub(bracketed, text)
        for text in texts for pattern, bracketed in _NESTED if pattern.search(text)
    ]  # fmt: skip
    sums = [_MIXED.sub(r"(\1 + \2)", text) for text in texts]
    return tuple(dict.fromkeys(text.replace("⊕", "*") for text in (*sums, *texts)))


def _factor(before: Sequence[str]) -> str:
    """The factor that the last words stand for (twice, half of the, two thirds of), or nothing."""
    words = list(before)
    while words and words[-1] in ARTICLES:
        words.pop()
    of = bool(words) and words[-1] == "of"
    words = words[:-1] if of else words
    words = [*words[:-1], *words[-1].split("-")] if words else []
    last = words[-1] if words else ""
    if last in _FACTORS:
        return _FACTORS[last]
    nth = len(words) > 1 and words[-2] in _NTH  # in the second half 4 * 85 = 340
    if singular(last) in _PARTS and (of or (last == "half" and not nth)):
        return f"{_COUNTS.get(words[-2], 1) if len(words) > 1 else 1}/{_PARTS[singular(last)]}"
    return ""


def _comparable(left: Side, right: Side, relation: str, *, first: bool) -> bool:
    """Return whether a relation claims that two values are equal, as in no "Day 3 = 24 boxes"."""
    if not left.readings or not right.readings:
        return False
    if left.letters != right.letters and not (right.letters or right.units & UNITS):
        return False  # 7s = 84
    if relation in _RELATIONS or relation == VERBAL:
        return left.calculated and not left.fraction  # 3/4 is equal to $24
    if left.calculated:
        return True
    if converts(left.units, right.units):
        return left.alone
    return left.alone and (right.calculated and not left.units if first else True)


def _runs_on(left: Side, right: Side, following: tuple[Side, Side] | None) -> bool:
    """Return whether a chain goes on with a result: 2 + 3 = 5 * 4 = 20 means 5 and then 20."""
    if following is None or not right.calculated or not right.written:
        return False
    return agree(left, first_number(right), "=")
