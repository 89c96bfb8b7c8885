"""Operations between plain numbers that an answer leaves undone."""

from typing import Any

import sympy

_UNDONE = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative, sympy.Mod)


def unfinished(parsed: Any) -> bool:
    """Return whether an operation between numbers is left undone anywhere: 3+4, 2*3, sqrt(9+16).

    A single fraction, root or power is finished, and so is a number in scientific notation.
    """
    if not isinstance(parsed, sympy.Basic):
        return isinstance(parsed, sympy.MatrixBase) and any(map(unfinished, parsed.flat()))
    if isinstance(parsed, _UNDONE):
        return True
    if isinstance(parsed, sympy.Add) and sum(map(_is_plain, parsed.args)) > 1:
        return True
    if isinstance(parsed, sympy.Mul) and not _is_scientific(parsed):
        plain = [each for each in parsed.args if _is_plain(each) and abs(each) != 1]
        divisors = [each for each in plain if isinstance(each, sympy.Pow) and each.exp == -1]
        if len(plain) - len(divisors) > 1 or len(divisors) > 1 or _fraction_over(plain, divisors):
            return True
    return any(map(unfinished, parsed.args))


def _fraction_over(plain: list[Any], divisors: list[Any]) -> bool:
    """Return whether a fraction is divided once more: (1/2)/3."""
    rest = [each for each in plain if each not in divisors]
    return bool(divisors) and any(isinstance(e, sympy.Rational) and e.q != 1 for e in rest)


def _is_plain(part: Any) -> bool:
    """A rational number: 3, 1/2, 0.5, 2^3, sqrt(49)."""
    if isinstance(part, sympy.Number):
        return True
    if isinstance(part, sympy.Expr) and not part.free_symbols and part.is_rational:
        return True
    powers = isinstance(part, sympy.Pow) and all(map(_is_plain, part.args)) and part.exp.is_Integer
    products = isinstance(part, sympy.Mul) and all(map(_is_plain, part.args))
    return bool(powers or products)


def _is_scientific(product: sympy.Mul) -> bool:
    parts = [each for each in product.args if each != -1]
    powers = [each for each in parts if isinstance(each, sympy.Pow) and each.base == 10]
    return len(parts) == 2 and len(powers) == 1 and any(isinstance(e, sympy.Number) for e in parts)
