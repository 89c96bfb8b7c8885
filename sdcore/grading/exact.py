"""Exact values of arithmetic expressions, read by Python's own parser and bounded in size.

An expression may be text that a model wrote, so nothing is executed: the syntax tree is walked, and
a number that would need more than `MAX_BITS` bits is refused before it is computed.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

MAX_LENGTH = 400  # characters of an expression
MAX_BITS = 2048  # of a numerator or denominator; 9**9**9 would have a billion
DIGITS = 40  # of roots and pi, which are no rationals
PI = Fraction("3.1415926535897932384626433832795028841972")
_DECIMAL = re.compile(r"(?<![\w.])(\d+)\.(\d+)(?![\w.])")

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def evaluate(expression: str) -> Fraction | None:
    """Value of an expression in Python's notation; None for one that is no bounded arithmetic.

    Known are + - * / ** and brackets, ``pi``, ``sqrt(a)``, ``root(n)(a)``, ``frac(a)(b)``,
    ``binom(n)(k)`` and ``factorial(n)``. Irrational values are rounded to `DIGITS` digits.
    """
    if len(expression) > MAX_LENGTH:
        return None
    try:
        exact = _DECIMAL.sub(_quotient, expression.strip())  # a float has only 17 digits
        return _value(ast.parse(exact, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, KeyError, RecursionError, MemoryError):
        return None


def _quotient(decimal: re.Match[str]) -> str:
    return f"({int(decimal[1] + decimal[2])}/{10 ** len(decimal[2])})"


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("no number")
        case ast.Constant(value=int() | float() as number):
            return _bounded(Fraction(str(number)))
        case ast.Name(id="pi"):
            return PI
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATIONS:
            return _bounded(_OPERATIONS[type(sign)](_value(left), _value(right)))
        case ast.Call(func=ast.Call(func=ast.Name(id=name), args=[a]), args=[b], keywords=[]):
            return _bounded(_BINARY[name](_value(a), _value(b)))
        case ast.Call(func=ast.Name(id=name), args=[a], keywords=[]):
            return _bounded(_UNARY[name](_value(a)))
    raise ValueError(f"no arithmetic: {type(node).__name__}")


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MAX_BITS:
        raise OverflowError("a number of too many digits")
    return number


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent.numerator) > MAX_BITS:
        raise OverflowError("a power of too many digits")
    return _bounded(_root(Fraction(exponent.denominator), base) ** exponent.numerator)


def _root(degree: Fraction, number: Fraction) -> Fraction:
    """The root of a number: exact where it is rational, else rounded to `DIGITS` digits."""
    if degree == 1:
        return number
    if number < 0 or degree.denominator != 1 or not 2 <= degree <= 12:
        raise ValueError("no real root")
    n = int(degree)
    top, bottom = _whole_root(number.numerator, n), _whole_root(number.denominator, n)
    if top**n == number.numerator and bottom**n == number.denominator:
        return Fraction(top, bottom)
    scale = 10**DIGITS
    return Fraction(_whole_root(number.numerator * scale**n // number.denominator, n), scale)


def _whole_root(number: int, degree: int) -> int:
    """The largest whole number whose power is not above a number, by bisection."""
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle)
    return low


def _natural(number: Fraction, limit: int = 200) -> int:
    if number.denominator != 1 or not 0 <= number <= limit:
        raise ValueError("no small natural number")
    return int(number)


_UNARY: dict[str, Callable[[Fraction], Fraction]] = {
    "sqrt": lambda a: _root(Fraction(2), a),
    "factorial": lambda a: Fraction(math.factorial(_natural(a))),
}
_BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "frac": lambda a, b: a / b,
    "root": _root,
    "binom": lambda a, b: Fraction(math.comb(_natural(a), _natural(b))),
}


def decimal_places(number: str) -> int:
    """Digits after the point of a number as it is written, such as 2 in ``19.90``."""
    exponent = Decimal(number).as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0
