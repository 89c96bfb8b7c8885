# ruff: noqa: E501
from fractions import Fraction
from math import factorial, isqrt

import pytest

from sdcore.grading.exact import decimal_places, evaluate

HALF = Fraction(1, 2)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("2 + 3 * 4 - 5", 9), (" 7 / 2 ", 7 * HALF), ("2 ** 3 ** 2", 512), ("- 2 ** 2", -4),
        ("2 ** ( - 2 )", HALF**2), ("8 ** ( 2 / 3 )", 4), ("( 27 / 8 ) ** ( 1 / 3 )", 3 * HALF),
        ("sqrt ( 49 / 4 )", 7 * HALF), ("sqrt(0)", 0), ("root(3)(64)", 4), ("root(2)(9)", 3),
        ("root(12)(4096)", 2), ("root(1)(5)", 5), ("factorial(0)", 1), ("factorial(5)", 120),
        ("binom(5)(2)", 10), ("binom(2)(5)", 0), ("frac(3)(4)", Fraction(3, 4)),
        ("0.1 + 0.2", Fraction(3, 10)), ("2e3", 2000), ("1.5e-2", Fraction(3, 200)),
        ("1312680775676920.9 * 10", 13126807756769209), ("0.05", Fraction(1, 20)),
    ],
)  # fmt: skip
def test_arithmetic_has_an_exact_value(expression, expected):
    assert evaluate(expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "1 / 0", "0 ** ( - 1 )", "frac(3)(0)", "sqrt(-4)", "( - 8 ) ** ( 1 / 3 )",
        "root(13)(8192)",
        "root(0)(5)", "root(1/2)(5)", "factorial(-1)", "factorial(5/2)", "binom(201)(2)", "1e400",
        "e", "sqrt", "log(2)", "sqrt(2)(3)", "sqrt(2, 3)", "factorial(n=5)", "frac(1)(n=2)", "5 % 3",
        "5 // 2", "+5", "True", "'5'", "5j", "[1]", "1 < 2", "1; 2", "",
    ],
)  # fmt: skip
def test_anything_else_has_none(expression):
    assert evaluate(expression) is None


@pytest.mark.parametrize(
    ("allowed", "expected", "refused"),
    [
        ("1" + "+1" * 199 + " ", 200, "1" + "+1" * 200),  # 400 and 401 characters
        ("2 ** 1024", 2**1024, "2 ** 1025"),  # 2 has two bits
        ("( 1 / 2 ) ** 1024", HALF**1024, "( 1 / 2 ) ** 1025"),
        ("2 ** ( - 1024 )", HALF**1024, "2 ** ( - 1025 )"),
        ("2 ** 1024 * 2 ** 1023", 2**2047, "2 ** 1024 * 2 ** 1024"),
        ("1 / 2 ** 1024 / 2 ** 1023", HALF**2047, "1 / 2 ** 1024 / 2 ** 1024"),
        ("factorial(200)", factorial(200), "factorial(201)"),
    ],
)
def test_size_is_bounded(allowed, expected, refused):
    assert evaluate(allowed) == expected
    assert evaluate(refused) is None


def test_roots_and_pi_have_forty_digits():
    assert evaluate("sqrt(2)") == Fraction(isqrt(2 * 10**80), 10**40)
    assert evaluate("2 ** ( 1 / 2 )") == evaluate("root(2)(2)") == evaluate("sqrt(2)")
    assert evaluate("sqrt(1 / 2)") == Fraction(isqrt(5 * 10**79), 10**40)
    known = Fraction("3.14159265358979323846264338327950288419716939937510")
    assert abs(evaluate("pi") - known) < Fraction(1, 10**40)


@pytest.mark.parametrize(
    ("number", "places"), [("19.90", 2), ("5", 0), ("2e3", 0), ("1.5e-3", 4), ("1e-3", 3)]
)
def test_decimal_places_are_those_written(number, places):
    assert decimal_places(number) == places
