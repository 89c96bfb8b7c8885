"""Plain arithmetic in text: numbers, the value of an expression, sums that do not come out."""

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

MAX_LENGTH = 200  # characters of an expression
TOLERANCE = Fraction(1, 100)  # relative: texts round
NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+")  # without a sign

_AMOUNT = r"\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_OPERATOR = r"\s*[-+*/x×÷]\s*"
# Both sides stand alone: `y - 3 + 4 = 1`, `3 + 4 = 7x`, `1/2 + 1/3 = 5/6` and `9 + 5 = 2 (mod 12)`
# are other formulas.
_EQUATION = re.compile(
    rf"(?<![\w.,:)%^*/+×÷-])(?<![-+*/^)%×÷\d]\s)({_AMOUNT}(?:{_OPERATOR}{_AMOUNT})+)"
    rf"\s*=\s*(-?{_AMOUNT})(?![\w%:^]|[.,]\d| \d|\s*\(|\s*[-+*/^×÷]\s*[\w(])"
)
_SIGNS = re.compile(r"\\times\b|\\cdot\b|[·⋅∗]|(−)|(\\div\b)")  # read as * - /
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def numbers(text: str) -> list[Decimal]:
    """All numbers of a text in order, without their signs: 1,200 and 1200.0 are the same."""
    return [Decimal(number.replace(",", "")) for number in NUMBER.findall(text)]


def value(expression: str) -> Fraction | None:
    """Exact value of numbers joined by + - * / and brackets; None for anything else."""
    if len(expression) > MAX_LENGTH:
        return None
    plain = re.sub(r"[$,\s]", "", expression).translate(str.maketrans("x×÷", "**/"))
    plain = re.sub(r"(?<![\d.])0+(?=\d)", "", plain)  # Python reads no 05
    try:
        return _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def false_equation(text: str) -> str | None:
    """The first sum such as ``47+23=71`` that does not come out; None where all do.

    Whole numbers have to be exact, others may be rounded; ``60/3/4`` is left alone, since it is
    written for 60/(3/4) as well.
    """
    plain = _SIGNS.sub(lambda sign: "-" if sign[1] else "/" if sign[2] else "*", text)
    return next((each[0] for each in _EQUATION.finditer(plain) if not _holds(each)), None)


def _holds(equation: re.Match[str]) -> bool:
    left, right = value(equation[1]), value(equation[2])
    if left is None or right is None or equation[1].count("/") > 1:
        return True
    if left.denominator == right.denominator == 1:
        return left == right
    cut = right.denominator == 1 and abs(left - right) < 1
    return cut or abs(left - right) <= TOLERANCE * abs(right)


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    raise ValueError(ast.dump(node))
