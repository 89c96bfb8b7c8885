"""Reads two answers as mathematics and compares them. Runs in bounded workers only.

A few characters can keep a computer algebra system busy for hours or fill the memory; nothing here
guards against it. `sdcore.grading.answers` calls it through `sdcore.grading.bounded`, which does.
LaTeX is parsed by latex2sympy2_extended; sets, relations and matrices are compared by math-verify.
"""

import logging
import re
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet
from math_verify.grader import should_treat_as_complex, verify
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from sdcore.grading import measures
from sdcore.grading.literals import in_base, time_of_day, without_base_ten, without_option
from sdcore.grading.reading import Reading, is_word, read, words
from sdcore.grading.unfinished import unfinished
from sdcore.grading.values import Value, decimal_places, same_value, value

DIFFERS = "differs from the reference"
UNFINISHED = "leaves an operation between plain numbers undone"

_NORMALISE = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
_CONVERT = ConversionConfig(lowercase_symbols=False)  # X is not x
_PRECISION = 30  # digits to which two closed expressions are compared
_RATIO = re.compile(r"(?<![\w.:])([\d.]+|[A-Za-z])((?:\s*:\s*(?:[\d.]+|[A-Za-z])){2,})(?![\w.])")
_TOKEN = re.compile(r"(?<![^\s(,])[A-Za-z]{2,}(?![^\s.),])")  # letters between spaces
_JOINED = re.compile(
    r"\s*(?:\\text\{\s*(or|and)\s*\}|\b(or|and)\b|\\(lor|land)\b)\s*"
)  # x<1 or x>2
_DIVISION = r"\s*(?:/|\\div)\s*\d[\d.]*"
_DIVIDED = re.compile(
    rf"\d\s*\\div\s*\d|\d{_DIVISION}{_DIVISION}"
)  # 48 ÷ 2, 24/2/3: one fraction is fine
_BRACES = re.compile(r"\\?\{")
_INEQUALITY = re.compile(r"[<>]|\\(?:l|g)(?:e|eq|t)(?![a-z])|\\(?:leq|geq)slant")
_CALCULUS = re.compile(r"\\int|\\partial|\\frac\s*\{\s*d[^}]*\}\s*\{\s*d")
_DIFFERENTIAL = re.compile(r"(?<![A-Za-z\\])d\s*(?=[A-Za-z](?![a-z]{2}))")  # da is d times a here
_SETS = {
    "or": sympy.Union,
    "lor": sympy.Union,
    "and": sympy.Intersection,
    "land": sympy.Intersection,
}

# One of each kind that answers have: reading it once fills the caches of the parser and of sympy.
_KINDS = (
    ("0.5", r"\frac{1}{2}"), ("x^2-1", "(x-1)(x+1)"), (r"2\sqrt{2}", r"\sqrt{8}"), ("1/2", "0.5"),
    (r"\{1, 2\}", r"\{2, 1\}"), ("[1,2)", "(1,2]"), (r"50\%", "0.5"), ("x=5", "5"), ("x", "1<x<2"),
    (r"\text{even}", "odd"), ("(1, 2)", "(2, 1)"), ("10 km", "10"), (r"x \in (1,2)", r"\pi"),
    (r"\sin(2x)", r"2\sin x\cos x"), (r"\begin{pmatrix}1&2\end{pmatrix}", "2^{10}"), ("(", "0"),
    ("x^2=4", "2x^2=8"), ("5 km", "5000 m"), ("3+4", "7"),
)  # fmt: skip

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off


def readable(text: str) -> bool:
    """Return whether a text can be read as mathematics or as words."""
    reading = read(text)
    plain, _ = measures.without_unit(reading.text)
    return words(plain) is not None or in_base(plain) is not None or _parsed(plain) is not None


def difference(answer: str, reference: str) -> str | None:
    """Return why an answer is not equal to a reference; None if it is."""
    return _difference(read(answer), read(reference))


def _difference(mine: Reading, theirs: Reading) -> str | None:
    if mine.listed and "," in theirs.text and _difference(Reading(mine.listed), theirs) is None:
        return None
    if theirs.listed and "," in mine.text and _difference(mine, Reading(theirs.listed)) is None:
        return None
    answer, unit = measures.without_unit(mine.text)
    reference, wanted = measures.without_unit(theirs.text)
    for reading, found in ((mine, unit), (theirs, wanted)):
        if reading.currency and found is not None and not measures.is_rate(found):
            return DIFFERS  # $5 m
    unit = measures.registry().Unit(mine.currency) if mine.currency else unit
    wanted = measures.registry().Unit(theirs.currency) if theirs.currency else wanted
    if (mine.percent or theirs.percent) and (unit is not None or wanted is not None):
        return DIFFERS  # 5 cents and 5%
    scale: Fraction | None = Fraction(1)
    if unit is not None and wanted is not None:
        scale = measures.factor(unit, wanted)
    if scale is None and {str(unit), str(wanted)} != {"sterling", "pound"}:  # £5 and 5 pounds
        return DIFFERS
    scale = scale or Fraction(1)
    answer, reference = without_option(answer, reference), without_option(reference, answer)
    time, expected_time = time_of_day(answer), time_of_day(reference)
    if time is not None and expected_time is not None:
        return None if time.same(expected_time) else DIFFERS
    spoken, expected = words(answer), words(reference)
    if spoken is not None or expected is not None:
        return None if spoken == expected else DIFFERS
    answer, reference = without_base_ten(answer, reference)
    based = [in_base(text) for text in (answer, reference)]
    if based != [None, None]:
        return None if based[0] == based[1] else DIFFERS
    if scale != 1:
        answer = rf"\frac{{{scale.numerator}}}{{{scale.denominator}}} \cdot ({answer})"
    if mine.percent != theirs.percent:
        hundredth = rf"\frac{{{answer if mine.percent else reference}}}{{100}}"
        pair = (hundredth, reference) if mine.percent else (answer, hundredth)
        if _compared(*pair, scaled=True) is None:
            return None
    return _compared(answer, reference, scaled=scale != 1)


def _compared(answer: str, reference: str, scaled: bool) -> str | None:
    mine, theirs = value(answer), value(reference)
    if mine is not None and theirs is not None:
        return None if same_value(mine, theirs) else DIFFERS
    left, right = _parsed(answer), _parsed(reference)
    if left is None or right is None:
        return DIFFERS
    left, right = _without_name(left, right)
    if left is None or right is None:
        return DIFFERS
    if _other_brackets(answer, right) or _other_brackets(reference, left):
        return DIFFERS
    if not _equal(left, right):
        return DIFFERS
    undone = unfinished(left) or _DIVIDED.search(answer.rpartition("=")[2])
    return UNFINISHED if undone and not scaled and not unfinished(right) else None


def _other_brackets(text: str, other: Any) -> bool:
    """Return whether a set is to be compared with a pair or an interval: {1, 2} and (1, 2)."""
    return bool(_BRACES.match(text)) and isinstance(other, sympy.Interval | sympy.Tuple)


def _equal(answer: Any, reference: Any) -> bool:
    if isinstance(answer, sympy.Expr) and isinstance(reference, sympy.Expr):
        return _equal_expressions(answer, reference)
    if _is_relation(answer) and _is_relation(reference):
        return _equal_relations(answer, reference)
    return _verified(answer, reference)


def _equal_expressions(answer: sympy.Expr, reference: sympy.Expr) -> bool:
    if answer == reference:
        return True
    answer, reference = _complex(answer, reference)
    if not answer.free_symbols and not reference.free_symbols:
        close = _close(answer, reference)
        if close is not None:
            return close
    try:
        gap = sympy.nsimplify(answer - reference, rational=True)
        return bool(sympy.simplify(gap.doit()).is_zero)
    except (TypeError, ValueError, AttributeError, NotImplementedError, ZeroDivisionError):
        return False


def _complex(answer: sympy.Expr, reference: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """Both with the imaginary unit for i, where that is the only letter in them."""
    names = answer.free_symbols | reference.free_symbols
    if {str(name) for name in names} != {"i"}:
        return answer, reference
    unit = dict.fromkeys(names, sympy.I)
    return answer.subs(unit), reference.subs(unit)


def _close(answer: sympy.Expr, reference: sympy.Expr) -> bool | None:
    """Return whether two numbers agree; None if evaluation does not settle it."""
    mine, theirs = answer.doit(), reference.doit()
    gap = mine - theirs
    if gap.is_Rational:
        return bool(gap == 0)
    mine, theirs = mine.evalf(_PRECISION), theirs.evalf(_PRECISION)
    if not (mine.is_number and theirs.is_number and mine.is_finite and theirs.is_finite):
        return None
    if not (mine.is_comparable and theirs.is_comparable):
        return None  # complex
    largest = max(abs(mine), abs(theirs))
    if largest < sympy.Float(10) ** -20000 or largest == 0:
        return True if mine == theirs else None
    if answer.has(sympy.Float) or reference.has(sympy.Float):
        return same_value(_value(mine), _value(theirs))
    try:
        return bool(gap.evalf(_PRECISION, strict=True) == 0)
    except sympy.PrecisionExhausted:  # no digit of it is known: it is 0, as far as sympy can see
        return True


def _value(number: sympy.Expr) -> Value:
    rational = sympy.Rational(str(number))
    return Value(Fraction(int(rational.p), int(rational.q)), decimal=True)


def _equal_relations(answer: Any, reference: Any) -> bool:
    """Relations that are multiples of each other are equal, else those with equal solutions.

    Two without a solution are not, nor are two that hold for all numbers: that says nothing.
    """
    if isinstance(answer, Relational) and isinstance(reference, Relational):
        if _multiples(answer, reference):
            return True
        equations = isinstance(answer, sympy.Eq) and isinstance(reference, sympy.Eq)
        if equations and (_unsolvable(answer) or _unsolvable(reference)):
            return False
    return _verified(answer, reference)


def _multiples(answer: Any, reference: Any) -> bool:
    """Return whether a relation is another times a number, a positive one for an inequality."""
    if answer.rel_op.replace(">", "<") != reference.rel_op.replace(">", "<"):
        return False
    directed = "<" in answer.rel_op or ">" in answer.rel_op
    try:
        mine, theirs = (
            sympy.simplify(each.gts - each.lts if directed else each.lhs - each.rhs)
            for each in (answer, reference)
        )
        quotient = sympy.simplify(mine / theirs)
    except (TypeError, ValueError, ZeroDivisionError):
        return False
    if not theirs.free_symbols:  # 0 = 1 and 0 = 2
        return False
    known = quotient.is_number and quotient.is_finite and not quotient.is_zero
    return bool(known and (quotient.is_positive or not directed))


def _unsolvable(equation: sympy.Eq) -> bool:
    try:
        return not sympy.solve(equation, equation.free_symbols)
    except (NotImplementedError, TypeError, ValueError):
        return False


def _verified(answer: Any, reference: Any) -> bool:
    """Math-verify's verdict, with as many decimals as the smallest number in either needs."""
    numbers = [
        _value(number).exact
        for side in (answer, reference)
        if isinstance(side, sympy.Basic)
        for number in side.atoms(sympy.Number)
        if number.is_finite
    ]
    places = decimal_places(numbers)
    return bool(
        verify(
            reference, answer, float_rounding=places, numeric_precision=max(15, places + 9),
            timeout_seconds=None, allow_set_relation_comp=True,
        )
    )  # fmt: skip


def _without_name(answer: Any, reference: Any) -> tuple[Any, Any]:
    """Drop the left side of ``x = 5`` or ``3 + 4 = 7`` where the other side is no equation."""
    if _is_equation(answer) and not _is_relation(reference):
        answer = _last_side(answer)
    elif _is_equation(reference) and not _is_relation(answer):
        reference = _last_side(reference)
    elif _is_equation(answer) and _is_equation(reference):
        mine, theirs = _sides(answer), _sides(reference)
        if mine[0] == theirs[0] and _is_name(mine[0]):
            answer, reference = _last_side(answer), _last_side(reference)
    else:
        values, expected = _values_of_names(answer), _values_of_names(reference)
        if expected is not None and values is None:
            answer, reference = _in_order(answer), expected
        elif values is not None and expected is None:
            answer, reference = values, _in_order(reference)
    return answer, reference


def _values_of_names(parsed: Any) -> sympy.Tuple | None:
    """The values of ``x = 1, y = 2`` as written; None where a name repeats: ``x = 1, x = 2``."""
    if not isinstance(parsed, FiniteSet) or not all(map(_is_equation, parsed.args)):
        return None
    pairs = [_sides(each) for each in parsed._unsorted_args]
    apart = len({pair[0] for pair in pairs}) == len(pairs)
    named = all(len(pair) == 2 and _is_name(pair[0]) for pair in pairs)
    return sympy.Tuple(*(pair[1] for pair in pairs)) if apart and named else None


def _in_order(parsed: Any) -> Any:
    """A list as written, which the parser takes for a set."""
    if not isinstance(parsed, FiniteSet) or any(map(_is_relation, parsed.args)):
        return parsed
    return sympy.Tuple(*parsed._unsorted_args)


def _last_side(equation: Any) -> Any:
    """The last side of equations that name it or are true sums; else None."""
    first, *others = _sides(equation)
    if not _is_name(first):
        others = [first, *others]
    closed = all(isinstance(side, sympy.Expr) and not side.free_symbols for side in others)
    if len(others) == 1:
        return others[0]
    if closed and all(_close(side, others[-1]) for side in others[:-1]):
        return others[-1]
    if _is_name(first) and all(_equal_quietly(side, others[-1]) for side in others[:-1]):
        return others[-1]
    return None


def _equal_quietly(one: Any, other: Any) -> bool:
    return isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr) and _equal(one, other)


def _sides(equation: Any) -> list[Any]:
    if isinstance(equation, And):
        first, *others = equation._unsorted_args
        return [first.lhs, first.rhs, *(each.rhs for each in others)]
    if isinstance(equation.rhs, sympy.Symbol) and not equation.lhs.free_symbols:  # 5 = x
        return [equation.rhs, equation.lhs]
    return [equation.lhs, equation.rhs]


def _is_name(side: Any) -> bool:
    """Return whether the left side of an equation names the right: x, P(2), AB, a + b."""
    if isinstance(side, AppliedUndef | sympy.Symbol):
        return True
    plain = isinstance(side, sympy.Expr) and side.free_symbols and not side.atoms(sympy.Number)
    return bool(plain) or (isinstance(side, sympy.Tuple) and all(map(_is_name, side)))


def _is_equation(parsed: Any) -> bool:
    return isinstance(parsed, sympy.Eq) or (
        isinstance(parsed, And) and all(isinstance(e, sympy.Eq) for e in parsed._unsorted_args)
    )


def _is_relation(parsed: Any) -> bool:
    return isinstance(parsed, Relational) or (
        isinstance(parsed, And) and all(isinstance(e, Relational) for e in parsed._unsorted_args)
    )


@cache
def warm_up() -> None:
    """Compare one pair of each kind: otherwise a process's first comparisons take a second."""
    for answer, reference in _KINDS:
        difference(answer, reference)


@lru_cache(maxsize=8192)
def _parsed(text: str) -> Any:
    """Sympy's expression of a text, None if it cannot be read."""
    parts = [part for part in _JOINED.split(text) if part and part not in _SETS]
    if len(parts) > 1 and all(map(_INEQUALITY.search, parts)):
        joined = {name for match in _JOINED.finditer(text) for name in match.groups() if name}
        try:
            sets = [_converted(part).as_set() for part in parts]
        except MemoryError:
            raise
        except Exception:
            return None
        return _SETS[joined.pop()](*sets) if len(joined) == 1 else None
    text = _RATIO.sub(_ratio, _TOKEN.sub(_symbol, text))
    if text.count(r"\pm") == 1 and "," not in text:
        text = ", ".join(text.replace(r"\pm", sign) for sign in ("+", "-"))
    try:
        parsed = _converted(text)
    except MemoryError:
        raise
    except Exception:
        return None
    if isinstance(parsed, sympy.Basic) and parsed.has(sympy.zoo, sympy.nan):
        return None  # 1/0
    if isinstance(parsed, FiniteSet) and not _BRACES.match(text):
        return _listed(parsed)
    return parsed


def _listed(parsed: FiniteSet) -> Any:
    """A list in order where an element occurs twice, which a set would not show: 1, 1, 2.

    The parser's set keeps what was written until sympy first evaluates it, as its class says.
    """
    elements = getattr(parsed, "_unsorted_args", parsed.args)
    if len(elements) == len(parsed.args):
        return parsed
    return sympy.Tuple(*sorted(elements, key=lambda each: sympy.default_sort_key(each.evalf())))


def _ratio(match: re.Match[str]) -> str:
    """A ratio of three or more, as a tuple that is the same for its multiples: 4:6:10 and 2:3:5."""
    first, *others = re.split(r"\s*:\s*", match[0])
    parts = (rf"\frac{{{each}}}{{{first}}}" for each in others)
    return f"(1, {', '.join(parts)})"


def _symbol(match: re.Match[str]) -> str:
    """A word between spaces as one symbol: ``5 apples``, ``2 ACB``; ``2 xy`` and ``or`` stay."""
    return rf"\text{{{match[0]}}}" if is_word(match[0]) else match[0]


def _converted(text: str) -> Any:
    latex = normalize_latex(text, config=_NORMALISE)
    if not _CALCULUS.search(latex):
        latex = _DIFFERENTIAL.sub("(d)", latex)
    parsed = latex2sympy(
        latex,
        is_real=not should_treat_as_complex(latex),
        convert_degrees=False,
        normalization_config=None,
        conversion_config=_CONVERT,
    )
    if isinstance(parsed, sympy.Basic) and parsed.has(sympy.Derivative):
        parsed = parsed.replace(_is_opaque, lambda rate: sympy.Symbol(str(rate)))
    return parsed


def _is_opaque(part: Any) -> bool:
    """A derivative of what is not written as depending on its variable: dy/dt, which is not 0."""
    return isinstance(part, sympy.Derivative) and not part.expr.has(*part.variables)
