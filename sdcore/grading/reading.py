"""Rewrites an answer as a person types it into plain LaTeX, and reads plain values exactly.

Only regular expressions and exact fractions are used here, so it is fast and safe in any process.
Units of measure and algebra need libraries that run in worker processes: see `algebra`.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from sdcore.grading.spelt import SCALES, in_digits


@dataclass(frozen=True)
class Reading:
    """An answer without markup, currency, percent sign and thousands separators.

    Args:
        text: the answer as LaTeX, a unit of measure still at its end: ``14400``, ``5\\,cm^2``.
        currency: ``dollar``, ``cent``, ``euro``, …; None where none is named.
        percent: whether a percent sign was removed.
        listed: the same with commas left as separators of a list, where both readings are
            possible: ``100,200`` is a number and two numbers.
    """

    text: str
    currency: str | None = None
    percent: bool = False
    listed: str | None = None


def read(text: str) -> Reading:
    """Rewrite an answer as LaTeX.

    Example: ``The answer is **$14,400.**`` → ``14400`` with currency ``dollar``.
    """
    plain = _GOES_ON.sub(_repeating, " ".join(_ascii(text).split()))
    plain = _NEGATIVE.sub("-", _SCALE_TEXT.sub(r" \1", _unwrapped(plain)))
    plain, percent = _without_percent(plain)
    plain, currency = _without_currency(plain)
    plain = in_digits(plain)
    joined = _joined_thousands(plain)
    listed = None if joined == plain or "," not in plain else _latex(plain.replace(",", ", "))
    return Reading(_latex(joined), currency, percent, listed)


def words(text: str) -> str | None:
    """Case-folded words of a text that is words only; None for mathematics such as ``xy``."""
    plain = plain_text(text).strip(" .")
    tokens = _TOKENS.findall(plain)
    if not _WORDS.fullmatch(plain) or not any(map(is_word, tokens)):
        return None
    return plain.casefold()


def plain_text(text: str) -> str:
    r"""A text without ``\text{…}`` around its words, and with single spaces."""
    return " ".join(_TEXT.sub(r"\1", text).split())


def is_word(token: str) -> bool:
    """Return whether letters are a word, not a product such as ``xyz``, ``ab`` or a function."""
    return len(token) > 1 and not _PRODUCT.fullmatch(token) and token not in _NAMES


# --- characters -----------------------------------------------------------------------------------

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‒": "-", "‐": "-", "‑": "-", "﹣": "-",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*", "÷": r"\div ",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "≅": r"\approx ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ",
    "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "∠": r"\angle ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⁄": "/", "∕": "/", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "…": "...",
    "“": '"', "”": '"', "’": "'", "‘": "'", "′": "'", "∨": r"\lor ", "∧": r"\land ",
    "→": r"\to ", "⇒": r"\Rightarrow ", "∴": r"\therefore ",
    "µ": "µ", "Ω": "Ω", "º": "°", "°": "°",
}  # fmt: skip
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff\ufe0e\ufe0f]")
_VULGAR = re.compile("[¼½¾⅐-⅞↉]")
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋"
_SCRIPTS = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")
_GREEK = re.compile(r"GREEK (SMALL|CAPITAL) LETTER (\w+)")
_ROOT = re.compile(
    r"(\\sqrt(?:\[\d\])?) \s*(?:(\d+(?:\.\d+)?|[A-Za-z])|\(([^()]*)\))"
)  # √12, √(x+1)


def _ascii(text: str) -> str:
    """Write digits, signs, fractions, roots and Greek letters of Unicode in ASCII LaTeX."""
    if text.isascii():
        return text
    text = _VULGAR.sub(lambda match: _vulgar(match[0]), _INVISIBLE.sub("", text))
    text = _SCRIPTS.sub(lambda match: _script(match[0]), text)
    return _ROOT.sub(_root, "".join(map(_character, text)))


def _character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    digit = unicodedata.decimal(character, None)  # ４ and ٤ are 4
    if digit is not None:
        return str(digit)
    greek = _GREEK.fullmatch(unicodedata.name(character, ""))
    if greek:
        name = greek[2].lower().replace("lamda", "lambda")
        return f"\\{name if greek[1] == 'SMALL' else name.capitalize()} "
    return unicodedata.normalize("NFKC", character)  # a thin space is a space


def _vulgar(character: str) -> str:
    top, bottom = unicodedata.normalize("NFKC", character).split("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _script(characters: str) -> str:
    mark = "^" if characters[0] in _RAISED else "_"
    return f"{mark}{{{unicodedata.normalize('NFKC', characters).replace('−', '-')}}}"


def _root(match: re.Match[str]) -> str:
    return f"{match[1]}{{{match[2] or match[3]}}}"


# --- markup and the words around an answer --------------------------------------------------------

_MARKUP = re.compile(
    r"""(?<![\w)])\*\*|\*\*(?![\w(])   # **42**, but not 2**3
    | `+                              # `42`
    | (?<!\\)\\[()\[\]]               # \(42\) and \[42\]
    | \\displaystyle\b | \\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])
    | ^\#+\s*                         # #### 42
    | </?(?:answer|b|i|strong|em|code)>
    """,
    re.VERBOSE,
)
_DOLLARS = re.compile(r"(?<!\\)\$+")
_QUOTED = re.compile(r"""(["'])(.*)\1|__(.*)__|\*(.*)\*|_(.*)_""", re.DOTALL)
_BOX = re.compile(r"\\f?boxe?d?\s*(?=\{)")
_WHOLE_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|textrm)\s*(?=\{)")
_EDGES = re.compile(  # "= 6", "≈6", "6.", "six!"; 6! and n! are factorials, "6, ..." goes on
    r"^(?:=>|[\s=:~]|\\(?:approx|sim|to|[rR]ightarrow|implies|therefore)\b|\\[,;:!\s])+"
    r"|(?:[\s,;]|(?<!\.)\.|(?<=[a-z]{3})!|(?<!\\)\\(?:[,;:\s]|$))+$"
)
_TEXT_FIRST = re.compile(r"^\\text\s*\{([A-Za-z :,]+)\}(?=.)")  # \text{Answer: }42
_NO_LEAD = re.compile(  # words that change what follows: "not 42", "less than 42", "5 or 42"
    r"\b(?:not|no|nor|never|neither|cannot|either|or|if|unless|than|wrong|incorrect|false|except"
    r"|less|more|fewer|minus|plus|times|half|twice|least|most|between|without|over|under)\b|n't",
    re.IGNORECASE,
)
_THEN = re.compile(r"(?:so|thus|hence|therefore|then|finally|and|now),?\s+", re.IGNORECASE)
_LEAD = re.compile(
    r"""(?:[A-Za-z][A-Za-z']*,?\s+){0,12}     # the total number of eggs
    (?:
        (?:is|are|was|were|be|equals?|becomes?|gives?|gets?|get|have|has|got|obtain|find|makes?|takes?|needs?
            |costs?|earns?|pays?|paid|spends?|spent|saves?|sells?|sold|buys?|bought|weighs?|measures?
            |contains?|holds?|uses?|used|required?s?|eats?|ate|walks?|runs?|reads?|received?s?|owes?)
        (?:\s+(?:that|now|then|thus|therefore|simply|exactly|equal\s+to))*\s*[:=]?\s+
      | (?:answer|result|solution|total|option|choice|approximately|about|roughly|around|exactly
          |nearly|only)\s*[:=]?\s+            # answer 42, option B, about 6
      | [A-Za-z]{2,}\s*:\s*                   # Final answer: 42
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_TAIL = re.compile(
    r"\s*,?\s*(?:is|are)\s+(?:the|my|our|your)\s+(?:final\s+|correct\s+)?(?:answer|result|solution)$"
    r"|\s*\((?:approximately|approx\.?|rounded|exactly)\)$"
    r"|\s+(?:in total|altogether|approximately)$",
    re.IGNORECASE,
)


def _unwrapped(text: str) -> str:
    """Without markup and without the words around an answer."""
    text = _MARKUP.sub(" ", text.replace(r"\left\{", r"\{").replace(r"\right\}", r"\}"))
    text = _boxed(" ".join(text.split()))  # runs of spaces make the patterns below slow
    if len(_DOLLARS.findall(text)) % 2 == 0:
        text = _DOLLARS.sub(" ", text)  # $42$ is mathematics, $42 is money
    text = _TEXT_FIRST.sub(r"\1 ", " ".join(text.split()))
    for _ in range(8):  # wrappings within wrappings
        before = text
        text = _EDGES.sub("", text)
        quoted = _QUOTED.fullmatch(text)
        if quoted:
            text = next(part for part in quoted.groups()[1:] if part is not None)
        text = _bare(text, _WHOLE_TEXT)
        text = _without_lead(_TAIL.sub("", text))
        if text == before:
            break
    return text


def _without_lead(text: str) -> str:
    then = _THEN.match(text)
    text = text[then.end() :] if then else text
    lead = _LEAD.match(text)
    rest = text[lead.end() :] if lead else ""
    return rest if lead and rest and not _NO_LEAD.search(lead[0]) else text


def _boxed(text: str) -> str:
    r"""Content of the only ``\boxed{…}`` if just words stand around it, else all of it."""
    boxes = list(_BOX.finditer(text))
    if len(boxes) == 1:
        inside = _braced(text, boxes[0].end())
        outside = text[: boxes[0].start()] + text[boxes[0].end() + len(inside) + 2 :]
        if inside and not re.search(r"[\d\\^_+*/<>]", outside) and not _NO_LEAD.search(outside):
            return inside
    return _BOX.sub("", text)


def _bare(text: str, command: re.Pattern[str]) -> str:
    """Content of a command that spans the whole text."""
    match = command.match(text)
    inside = _braced(text, match.end()) if match else ""
    return inside if match and match.end() + len(inside) + 2 == len(text) else text


def _braced(text: str, start: int) -> str:
    """Return the text between the brace at `start` and its partner; empty without one."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + 1 : index]
    return ""


# --- currency, percent, words for numbers, separators ---------------------------------------------

_CURRENCIES = {
    "dollar": r"\$|us\s?\\?\$|usd|dollars?|bucks?", "cent": "¢|cents?", "euro": "€|eur|euros?",
    "sterling": "£|gbp|pounds? sterling", "yen": "¥|jpy|yen", "rupee": "₹|inr|rs|rupees?",
    "yuan": "cny|rmb|yuan",
}  # fmt: skip
_MONEY = "|".join(f"(?P<{name}>{pattern})" for name, pattern in _CURRENCIES.items())
_PREFIX = re.compile(rf"^([-+]?)\s*\\?(?:{_MONEY})\.?\s*(?=[-+]?[\d.\\])", re.IGNORECASE)  # -$5
_SUFFIX = re.compile(
    rf"(?<=[\d}}\s])\s*(?:\\text\s*\{{)?\s*\\?(?:{_MONEY})\.?\s*\}}?$", re.IGNORECASE
)
_CENTS = re.compile(
    r"^(\d+) dollars?(?:,| and) (\d\d?) (?=cents?$)cents?"
)  # 5 dollars and 50 cents
_STRAY = re.compile(r"\\?[$€£¥₹]")
_PERCENT = re.compile(  # 50%  50\,\%  50\text{ percent}
    r"(?:\s|~|\\[,;:! ])*(?:\\text\s*\{\s*)?(?:\\?%|\b(?:percent|per cent|pct)\b)\s*\}?$",
    re.IGNORECASE,
)


def _without_percent(text: str) -> tuple[str, bool]:
    """Without a percent sign or word after a number: ``50%``, ``five per cent``."""
    number, marked = _PERCENT.subn("", text)
    number = in_digits(number)
    return (number, True) if marked and re.search(r"[\d}]$", number) else (text, False)


def _without_currency(text: str) -> tuple[str, str | None]:
    text = _CENTS.sub(lambda match: f"${match[1]}.{int(match[2]):02}", text)
    for pattern, kept in ((_PREFIX, r"\1"), (_SUFFIX, "")):
        match = pattern.search(text)
        if match:
            name = next(name for name in _CURRENCIES if match[name])
            return _STRAY.sub("", pattern.sub(kept, text)).strip(), name
    return _STRAY.sub("", text).strip(), None


_NEGATIVE = re.compile(r"^(?:minus|negative)\s+(?=[\d.$\\])", re.IGNORECASE)  # minus 5
_SCALE_TEXT = re.compile(  # 3\text{ million dollars}
    rf"(?<=\d)\s*\\(?:text|mathrm|mbox)\s*\{{\s*((?:{'|'.join(SCALES)})s?\b[a-z ]*)\}}$"
)

_SEPARATOR = (
    r"(?:,\\!|\{,\}|,|\\[,;: ]|~|[ '_])"  # 10,\!000  10{,}000  10,000  10\,000  10~000  10 000
)
_THOUSANDS = re.compile(
    rf"(?<![\d.,'])(?<![\d][ ~])([1-9]\d{{0,2}})"
    rf"((?P<mark>{_SEPARATOR})\d{{3}}(?:(?P=mark)\d{{3}})*"
    r"|(?:,\d\d)+,\d{3})"  # 1,00,000 as in India
    r"(?!\d|\s*/|,\d)"
)
_COMMA = re.compile(  # the decimal sign where others mark the thousands
    r"(?<![\d.,])([1-9]\d{0,2}(?:[. ]\d{3})+(?=,\d)"  # 1.234,5  1 234,5
    r"|[1-9]\d{0,2}(?:\.\d{3}){2,})(?:,(\d+))?(?![\d.,])"  # 1.000.000
)


def _joined_thousands(text: str) -> str:
    """Drop thousands separators, except commas within brackets: those separate a list.

    A decimal comma behind other separators becomes a point.
    """

    def join(match: re.Match[str]) -> str:
        before = text[: match.start()]
        depth = sum(map(before.count, ("(", "[", r"\{"))) - sum(
            map(before.count, (")", "]", r"\}"))
        )
        if depth > 0 and match["mark"] in (",", " ", None):
            return match[0]
        return match[1] + "".join(re.findall(r"\d+", match[2]))

    def pointed(match: re.Match[str]) -> str:
        return re.sub(r"\D", "", match[1]) + (f".{match[2]}" if match[2] else "")

    return _THOUSANDS.sub(join, _COMMA.sub(pointed, text))


# --- to LaTeX -------------------------------------------------------------------------------------

_NAMES = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh",
    "tanh", "log", "ln", "exp", "lim", "max", "min", "gcd", "lcm", "det", "alpha", "beta",
    "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
    "xi", "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "infty", "infinity", "inf",
    "sqrt", "or", "and",
}  # fmt: skip
_FUNCTIONS = re.compile(
    r"(?<![A-Za-z\\])(?<!text\{)(?<!mathrm\{)(?<!mbox\{)(?<!name\{)(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec(?!$)|csc|log|ln|exp"
    r"|alpha|beta|gamma|theta|phi|omega|pi)(?![A-Za-z])"
)
_PRODUCT = re.compile(r"[b-df-hj-np-tv-z]+|a[b-df-hj-rt-z]|[b-dx-z]a|[a-z]?[A-Z]|[A-Z][a-z]?(?=\d)")
_WORDS = re.compile(r"[^\W\d_][^\W\d_'. -]*(?:['. -]+[^\W\d_]+)*\.?")
_TOKENS = re.compile(r"[^\W\d_]+")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|textrm)\s*\{([^{}]*)\}")


def _repeating(match: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` is 1/6: (16 - 1)/90."""
    whole, fixed, period = match[1] or "0", match[2], match[3]
    top = int(whole + fixed + period) - int(whole + fixed)
    bottom = 10 ** len(fixed) * (10 ** len(period) - 1)
    return rf"\frac{{{top}}}{{{bottom}}}"


_GOES_ON = re.compile(  # 0.1666..., where the end is written three times or more
    r"(?<![\d.])(\d*)\.(\d{0,9}?)(\d{1,6}?)\3{2,}\s*(?:\.{3}|\\[lc]?dots)"
)
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_REWRITES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\(?:varnothing|O)\b|^\\\{\s*\\\}$|\\text\{\s*\\?O\s*\}"), r"\\emptyset "),
    (re.compile(r"^(?:there (?:is|are) )?no (?:real )?solutions?(?: exists?)?$", re.IGNORECASE),
     r"\\emptyset "),
    (re.compile(r"(?<=\d)\s*x\s*(?=\d)"), r"\\times "),              # 2 x 10^3
    (re.compile(r"\*\*"), "^"),                                      # 2**3
    (re.compile(r"\^(\w)\^(\w)"), r"^{\1^{\2}}"),                    # 2^3^2 is 2^9
    (re.compile(r"\\mathrm\s*\{([ei])\}"), r"\1"),                   # numbers in upright letters
    (re.compile(r"(\d)'\s*(\d{1,2})(?:\"|'')?$"), r"\1 ft \2 in"),   # 5'6"
    (re.compile(r"\^\s*\{?\s*\\prime\s*\}?"), "'"),
    (re.compile(r"(?<![A-Za-z\\])([A-Za-z])('+)(?![A-Za-z])"),       # f'(x) is not f(x)
     lambda match: f"{match[1]}_{{{'p' * len(match[2])}}}"),
    (re.compile(r"(?<=[A-Z])\^\s*(?:T|\\top\b|\{\s*(?:T|\\top)\s*\})"), "_{T}"),
    (re.compile(r"<="), r"\\le "), (re.compile(r">="), r"\\ge "), 
    (re.compile(r"!=(?!=)"), r"\\ne "),
    (re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,5})(?!\w)"),
     r"\1\\cdot 10^{\2}"),                                           # 2e3
    (re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?"), _repeating),
    (re.compile(r"(?<![\w.}/^-])(-?)\s*(\d+)\s+(\d+)/(\d+)(?![\d/])"), 
     r"\1\2\\frac{\3}{\4}"),                                          # 3 1/2
    (re.compile(r"(?<![\w.}/^)])(\d+)/(\d+)\s*(?=[A-Za-z\\(])"), r"\\frac{\1}{\2}"),  # 3/4 x
    (re.compile(r"^([-+]?)\s*(\d+)\s*/\s*(\d+)$"), r"\1\\frac{\2}{\3}"),  # 1/2
    (re.compile(r"^([-+]?)\\[dt]?frac\s*(\d)\s*(\d)$"), r"\1\\frac{\2}{\3}"),  # \frac12
    (re.compile(r"\\frac\{-(\d+)\}\{(\d+)\}$"), r"-\\frac{\1}{\2}"),
    (re.compile(r"\binf(?:inity)?\b"), r"\\infty "),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),  # sqrt(2)
    (_FUNCTIONS, r"\\\1 "),                                          # 2 sin x
    (re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*\{?-?\d+\}?)?\s*[({]?\s*)(\d+(?:\.\d+)?)\s*"
                r"(?:°|\^\s*\{?\s*\\circ\s*\}?)"), r"\1{\\frac{\2\\pi}{180}}"),  # sin 30°
    (re.compile(r"\^\s*([-+]\s*(?:\d+(?:\.\d+)?|[A-Za-z]))"), r"^{\1}"),   # 10^-7
    (re.compile(r"^\(([\dA-Fa-f]+)\)(?=_\{?\d)"), r"\1"),               # (212)_3
    (re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])"), r"\\cup "),              # (0,1) U (2,3)
    (re.compile(r"\\langle\b"), "("), (re.compile(r"\\rangle\b"), ")"),
    (re.compile(r"^(?:the set of )?(?:all )?real(?:s| numbers)$", re.IGNORECASE), r"\\mathbb{R}"),
    (re.compile(r"^\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|[|:])"
                r"(?=.*\1)(?=.*(?:[<>=]|\\[lgn]e))(.*)\\\}$"), r"\2"),    # \{x | x > 2\}
    (re.compile(r"\s+"), " "),
]  # fmt: skip


def _latex(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip()
