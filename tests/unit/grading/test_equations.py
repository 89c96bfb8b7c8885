from fractions import Fraction

import pytest

from sdcore.grading.equations import false_equation, value


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("48/2", 24), ("0.2*50", 10), (".5*4", 2), ("100-(30+15)", 55), ("1/3", Fraction(1, 3)),
        ("$1,200 × 2", 2400), ("6 ÷ 4", Fraction(3, 2)), ("-3+5", 2), ("05+1", 6), ("7x8", 56),
        ("1/0", None), ("2**9999999", None), ("__import__('os')", None), ("a+1", None), ("", None),
        ("1+" * 150 + "1", None), ("((((", None), ("True+1", None),
    ],
)  # fmt: skip
def test_only_plain_arithmetic_has_a_value(expression, expected):
    assert value(expression) == expected


@pytest.mark.parametrize(
    "text",
    [
        "47+23=71", "She has 24 - 5 = 18 left.", "so x = 3 + 4 = 8", "$1,200 / 12 = $10",
        "3*8 = 24 and 24-5 = 18", "0.2*50=12",
    ],
)  # fmt: skip
def test_a_false_sum_is_found(text):
    assert false_equation(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "47+23=70", "10/3 = 3.33", "7/2 = 3 full boxes", "2/3*100 = 67",
        "y - 3 + 4 = 1", "3 + 4 = 7x", "1/2 + 1/3 = 5/6", "9 + 5 = 2 (mod 12)", "10:30 + 2 = 12:30",
        "2 + 3 = 5 * 4 = 20", "2^3 + 1 = 9", "60 / 3/4 = 80", "600 x 30 = 18 000", "1,5 + 1,5 = 3",
        "2 1/2 * 2 = 5", "(2+3) * 2 = 10", "no sums", "5 - 7 = -2", "50% * 4 = 2",
    ],
)  # fmt: skip
def test_a_true_sum_or_another_formula_is_left_alone(text):
    assert false_equation(text) is None
