"""Plain arithmetic in text: the value of an expression, and sums that do not come out."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_LENGTH = 200  # characters of an expression
TOLERANCE = Fraction(1, 100)  # relative: texts round

_NUMBER = r"\$?\d[\d,]*(?:\.\d+)?"
_OPERATOR = r"\s*[-+*/x×÷]\s*"
# Both sides stand alone: `y - 3 + 4 = 1`, `3 + 4 = 7x` and `2 + 3 = 5 * 4` are other formulas.
_EQUATION = re.compile(
    rf"(?<![\w.,)%^*/+=×÷-])(?<![-+*/^=)%×÷]\s)({_NUMBER}(?:{_OPERATOR}{_NUMBER})+)"
    rf"\s*=\s*(-?{_NUMBER})(?![\w%(^]|[.,]?\d|\s*[-+*/^×÷]\s*[\d(\w])"
)
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


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
    """The first sum such as ``47+23=71`` that is not even roughly true; None where all hold."""
    for match in _EQUATION.finditer(text):
        left, right = value(match[1]), value(match[2])
        if left is None or right is None:
            continue
        if abs(left - right) > TOLERANCE * abs(right):
            return match[0]
    return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    raise ValueError(ast.dump(node))
