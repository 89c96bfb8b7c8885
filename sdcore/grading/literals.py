"""Answers with a notation of their own: letters of options, numbers with a base, times of day."""

import re
from dataclasses import dataclass

from sdcore.grading.reading import plain_text

_LETTER = re.compile(r"\(?[A-Z]\)?")
_OPTION = re.compile(  # (B) 5, B. 5 cm, B); not (B) 5 (C) 6, (B) is wrong
    r"\(?([A-Z])(?:\)[.:]?|[.:])(?:\s+((?:\\[a-z]+|[^A-Za-z\\]|(?<=\d )[a-z]+)*))?"
)
_SPACE = re.compile(r"\\[,;: ]|~")
_BASED = re.compile(r"(\d+|[\dA-Fa-f]{2,}(?=_\{?1[1-6]))_\{?(\d{1,2})\}?")  # 1010_2, FF_{16}
_BASE_TEN = re.compile(r"^(\d+)_(?:10|\{10\})$")
_CLOCK = re.compile(r"(\d\d?)(?::([0-5]\d)(?::([0-5]\d))?)?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)


def without_option(text: str, other: str) -> str:
    """Return the letter of ``(B) 5`` where the other answer is a letter, else the text."""
    option = _OPTION.fullmatch(plain_text(_SPACE.sub(" ", text)))
    return option[1] if option and _LETTER.fullmatch(other) else text


def without_base_ten(answer: str, reference: str) -> tuple[str, str]:
    """Drop the base 10 from both, unless both name a base."""
    if _BASED.fullmatch(answer) and _BASED.fullmatch(reference):
        return answer, reference
    return _BASE_TEN.sub(r"\1", answer), _BASE_TEN.sub(r"\1", reference)


def in_base(text: str) -> int | None:
    """Value of a number with a base: ``1010_2``. None without a base, and the base never drops."""
    match = _BASED.fullmatch(text)
    if match is None or not 2 <= int(match[2]) <= 36:
        return None
    try:
        return int(match[1], int(match[2]))
    except ValueError:
        return None


@dataclass(frozen=True)
class Time:
    """A time of day: seconds after midnight or noon, and which of them; None if that is open."""

    seconds: int
    afternoon: bool | None

    def same(self, other: "Time") -> bool:
        """Return whether both may be one time: 15:00, 3:00 p.m. and 3:00."""
        halves = {self.afternoon, other.afternoon} - {None}
        return self.seconds == other.seconds and len(halves) < 2


def time_of_day(text: str) -> Time | None:
    """Read ``3:30``, ``15:30:00``, ``3 p.m.``; None for anything else, such as the ratio 3:4."""
    match = _CLOCK.fullmatch(plain_text(text))
    if match is None or not (match[2] or match[4]) or int(match[1]) > 24:
        return None
    hours, minutes, seconds = (int(each or 0) for each in match.groups()[:3])
    afternoon = None if 1 <= hours <= 12 else 12 < hours < 24
    if match[4]:
        afternoon = match[4].lower() == "p"
    return Time((hours % 12 * 60 + minutes) * 60 + seconds, afternoon)
