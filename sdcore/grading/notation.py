"""Steps as tokens: numbers, operators, words and relations, whatever notation they are written in.

LaTeX, typographic signs, currency and thousands become one notation here, so that what follows
need not know them. Nothing is evaluated.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Kind = Literal[
    "number", "operator", "open", "close", "function", "word", "relation", "break", "odd"
]

VERBAL = "≐"  # what "is equal to" is replaced by
NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+")  # without a sign

_SIGNS = {
    **dict.fromkeys("\u2212\u2013\u2012\u2010\u2011\ufe63\uff0d", "-"),  # − – ‒ ‐ ‑
    **dict.fromkeys("×·⋅∙∗✕⨯•", "*"), **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("€£¥₹¢", "$"), **dict.fromkeys("°\u200b\u2061\u2062", ""),
    **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u2007", " "),
    "√": r"\sqrt ", "∛": r"\sqrt[3] ", "π": r"\pi ", "≈": r"\approx ", "≅": r"\approx ",
    "’": "'", "‘": "'", "…": "...", "~": " ",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_NOTE = re.compile(r"<<([^<>\n]*)>>")  # a calculator's, beside the result: 6*8=<<6*8=48>>48
_FRACTION = re.compile("[¼-¾⅐-⅞]")
_SIMPLER: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?:\\\\|\n)\s*&?\s*(?==|\\approx)", " "),  # a chain that goes on: \\ &= 7
        (r"\\(?:text|mathrm|textbf|textit|mbox|operatorname|mathbf)\s*\{([^{}]*)\}", r" \1 "),
        (
            r"(?<!\\)\\(?:left|right|boxed|displaystyle|[bB]igg?[lr]?|q?quad|,(?!\d{3})|[;:! ])",
            " ",
        ),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", ""),  # 180^\circ
        (r"\\[()]|\\?\$|&|`", " "),  # \( \), $ of mathematics or money
        (r"\\[\[\]]|\\\\|\\(?:begin|end)\{[^{}]*\}", "\n"),  # \[ \] \begin{align*}
        (r"\\%|\bper ?cent\b", "%"),
        (r"(?<![\\\w])sqrt(?=\s*\()", r"\\sqrt"),
        (r"(?:^|\n)\s*[*]\s+", "\n"),  # a list: * 3 + 4 = 7
        (r"(?<=\d) and a half\b(?! of\b)", " 1/2"),  # 2 and a half + 1
        (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),  # \frac12
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\times(?![a-zA-Z])|\\cdot(?![a-zA-Z])|\\ast(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"(?:(?<=[\d)\]])|(?<=\b[a-zA-Z]))\*\*(?=[\d(-])", "^"),  # 2**3  y**2
        (r"\*\*+|__+", " "),  # **bold**
        (r"(?<=\d)\s*[xX]\s*(?=\d)", "*"),  # 7x8, 7 x 8
        (r"\b(?:is|are|which) equal(?:s| to)\b|\bequals\b", f" {VERBAL} "),
        (  # but not: which is 2 more than 5
            r", which (?:is|equals|makes|gives|comes to)\b"
            r"(?![^.;]*\b(?:than|as|too|per|a|each|short)\b)",
            f" {VERBAL} ",
        ),
    )
)
_TOKEN = re.compile(
    r"""
      (?P<odd>\d{60,} | \d+(?::\d+)+ | 0\d{3}(?!\d)                 # 10:30  0730
        | \d+(?:\.\d+){2,} | \d+,\d{1,2}(?!\d) | \d{4,},\d+         # 1.2.3  1,5  1234,5
        | \d*\.{3,} | \\pm\b | ±)                                   # 0.333...
    | (?P<relation>==?(?!>) | ≐ | \\approx)
    | (?P<break>=>|->|<=|>=|!=|[→⇒≠≤≥<>—?;:"“”] | [.,](?=\s|$|[^\d]) | \s*\n\s*
        | \\(?:neq?|leq?|geq?|lt|gt|implies|[rR]ightarrow|to|equiv|iff|sim)\b)
    | (?P<number>\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?!\d)(?:\.\d+)?                # 1,200  1{,}200
        | \d{1,3}(?:[ ]\d{3})+(?!\d|[.,]\d|-)                                    # 18 000
        | (?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?!\w))?)                        # 0.5  .5  2e3
    | (?P<function>\\(?:frac|sqrt|binom|pi)(?![a-zA-Z]))
    | (?P<word>(?:(?<=\d)-(?=[a-z]{2}))?[^\W\d_]+(?:['-][^\W\d_]+)*(?:_\{[^{}]*\}|_\w)?)  # a_1
    | (?P<open>[({\[]) | (?P<close>[)}\]])
    | (?P<operator>[-+*/^%!@])
    | (?P<other>\\[a-zA-Z]+ | \S)
    """,
    re.VERBOSE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and where it is in the text that `tokens` returns."""

    kind: Kind
    text: str
    start: int
    end: int


def numbers(text: str) -> list[Decimal]:
    """All numbers of a text in order, without their signs: 1,200 and 1200.0 are the same."""
    return [Decimal(number.replace(",", "")) for number in NUMBER.findall(text)]


def tokens(text: str) -> tuple[str, list[Token]]:
    """A text in one notation, and its tokens; ``odd`` is what cannot be evaluated."""
    plain = simplified(text)
    return plain, [_token(match) for match in _TOKEN.finditer(plain)]


def simplified(text: str) -> str:
    """A text with LaTeX and typographic signs in plain notation: ``3 \\times 4`` is ``3 * 4``."""
    text = "\n".join([_NOTE.sub("", text), *_NOTE.findall(text)])
    plain = _FRACTION.sub(lambda sign: f" {unicodedata.normalize('NFKC', sign[0])}", text)
    plain = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda digits: "^" + digits[0].translate(_SUPERSCRIPTS), plain)
    plain = "".join(map(_compatible, plain))
    for pattern, replacement in _SIMPLER:
        plain = pattern.sub(replacement, plain)
    return plain


def _compatible(char: str) -> str:
    if char in _SIGNS:
        return _SIGNS[char]
    return char if char.isascii() else unicodedata.normalize("NFKC", char)


def _token(match: re.Match[str]) -> Token:
    kind = "odd" if match.lastgroup == "other" else match.lastgroup
    return Token(kind, match[0], *match.span())  # type: ignore[arg-type]
