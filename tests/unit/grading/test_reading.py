# ruff: noqa: E501
"""What is read without algebra; `test_answers.py` has what is equal in the end."""

from fractions import Fraction

import pytest

from sdcore.grading.answers import grade
from sdcore.grading.reading import Reading, is_word, read
from sdcore.grading.reading import words as words_of
from sdcore.grading.values import Value, decimal_places, same_value, value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$14,400", Reading("14400", "dollar", listed="14, 400")), ("-$5", Reading("-5", "dollar")),
        ("US$5", Reading("5", "dollar")), ("5 €", Reading("5", "euro")), ("Rs. 500", Reading("500", "rupee")),
        ("£5", Reading("5", "sterling")), ("¥500", Reading("500", "yen")), ("5 yuan", Reading("5", "yuan")),
        ("75 cents", Reading("75", "cent")), ("0.5 dollars", Reading("0.5", "dollar")),
        ("5 dollars and 50 cents", Reading("5.50", "dollar")), ("5 dollars, 5 cents", Reading("5.05", "dollar")),
        (r"3\text{ million dollars}", Reading("3000000", "dollar")),
        ("50%", Reading("50", percent=True)), ("five per cent", Reading("5", percent=True)),
        ("1/2 percent", Reading(r"\frac{1}{2}", percent=True)), ("x percent", Reading("x percent")),
        ("100,200", Reading("100200", listed="100, 200")), ("(100,200)", Reading("(100,200)")),
        ("[100,200]", Reading("[100,200]")), ("1 000 000", Reading("1000000")), ("1,0000", Reading("1,0000")),
        ("12,345,678.9", Reading("12345678.9", listed="12, 345, 678.9")),
        ("10 000,5", Reading("10000.5", listed="10 000, 5")), ("0,080", Reading("0,080")), ("= 5", Reading("5")),
    ],
)  # fmt: skip
def test_money_percent_and_thousands_are_taken_off(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 1/2", r"3\frac{1}{2}"), ("-3 1/2", r"-3\frac{1}{2}"), ("1/2", r"\frac{1}{2}"),
        ("2½", r"2\frac{1}{2}"), ("-½", r"-\frac{1}{2}"), ("3.5e-2", r"3.5\cdot 10^{-2}"),
        ("2 x 10^3", r"2\times 10^3"), ("2³", "2^{3}"), ("x₁", "x_{1}"), ("2**3", "2^3"),
        ("10^-7", "10^{-7}"), ("√12", r"\sqrt{12}"), ("√(x+1)", r"\sqrt{x+1}"), ("∛8", r"\sqrt[3]{8}"),
        ("π", r"\pi"), ("sin x", r"\sin x"), ("x<=3", r"x\le 3"), ("(212)_3", "212_3"), ("٤２", "42"),
        (r"0.1\overline{6}", r"\frac{15}{90}"), ("0.1666...", r"\frac{15}{90}"), ("1.333...", r"\frac{12}{9}"),
        ("0.33...", "0.33..."), ("**Answer:** 42", "42"), ("The answer is not 42", "not 42"),
        ("So x = 5", "x = 5"), ("#### 42", "42"), ('"42"', "42"), (r"\boxed{7}", "7"),
        (r"\boxed{7} or 8", "{7} or 8"), ("I got 7", "7"), ("about 6", "6"), ("42 is the answer", "42"),
        ("6!", "6!"), ("n!", "n!"), ("six!", "6"), (r"\text{Answer: }42", "42"),
    ],
)  # fmt: skip
def test_notation_and_words_around_an_answer_become_latex(text, expected):
    assert read(text).text == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seventeen", 17), ("twenty-one", 21), ("one hundred ten", 110), ("one hundred and five", 105),
        ("twelve hundred", 1200), ("twenty-one hundred", 2100), ("five thousand two hundred", 5200),
        ("one hundred million two", 100_000_002), ("1.5 million", 1_500_000), ("5 lakh", 500_000),
        ("a dozen", 12), ("hundred", 100), ("zero", 0), ("minus five", -5), ("-seventeen", -17),
        ("half", Fraction(1, 2)), ("an eighth", Fraction(1, 8)), ("3 tenths", Fraction(3, 10)),
        ("three quarters", Fraction(3, 4)), ("two and a half", Fraction(5, 2)),
        ("five hundred and one half", Fraction(1001, 2)), ("two million", 2_000_000),
    ],
)  # fmt: skip
def test_a_number_in_words_has_its_value(text, expected):
    assert value(read(text).text) == Value(Fraction(expected))


@pytest.mark.parametrize(
    "text", ["five six", "ninety ten", "five and", "five apples", "ten twenty"]
)
def test_words_that_are_no_number_stay(text):
    assert read(text).text == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.5", Value(Fraction(7, 2), True)), (".5", Value(Fraction(1, 2), True)), ("5.", Value(Fraction(5), True)),
        ("+7", Value(Fraction(7))), ("-7", Value(Fraction(-7))), (r"\frac{3}{4}", Value(Fraction(3, 4))),
        (r"-3\frac{1}{2}", Value(Fraction(-7, 2))), (r"\frac{1.5}{2}", Value(Fraction(3, 4), True)),
        (r"2\cdot 10^{-3}", Value(Fraction(1, 500), True)), (r"2*10^3", Value(Fraction(2000), True)),
        (r"-\frac{1}{2}\times 10^{2}", Value(Fraction(-50), True)),
        (r"1\times 10^{5000}", Value(Fraction(10**5000), True)), (r"1\times 10^{5001}", None),
        (r"1\times 10^{-5001}", None), (r"\frac{1}{0}", None), ("", None), ("-", None), ("10^{3}", None),
        ("1/3", None), ("x", None), ("3+4", None),
    ],
)  # fmt: skip
def test_plain_values_are_exact(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("1/3", "0.333333", True), ("1/3", "0.33333", False), ("2/3", "0.666667", True),
        ("2/3", "0.666666", False), ("0.0000001", "0.0000002", False), ("0", "0.0000001", False),
        ("0.12345678", "0.12345679", True), ("0.0123456", "0.0123457", False), ("0.012345678", "0.012345681", True),
        ("1234567.1", "1234567.2", False), ("5", "5.0", True), ("-0.5", "0.5", False),
    ],
)  # fmt: skip
def test_a_decimal_equals_what_rounds_to_its_six_digits(one, other, expected):
    mine, theirs = (Value(Fraction(text), "." in text) for text in (one, other))
    assert same_value(mine, theirs) == same_value(theirs, mine) == expected


def test_fractions_are_compared_exactly():
    third = Fraction(1, 3)
    assert not same_value(Value(third), Value(third + Fraction(1, 10**9)))
    assert same_value(Value(third), Value(third + Fraction(1, 10**9), True))


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ("", 6), ("0", 6), ("5", 6), ("0.5", 6), ("0.1", 6), ("0.09", 7), ("0 -0.004 7", 8),
        ("1e400", 6), ("2e-400", 405),
    ],
)  # fmt: skip
def test_the_smallest_value_keeps_six_significant_digits(values, places):
    assert decimal_places([Fraction(value) for value in values.split()]) == places


def test_words_are_no_mathematics():
    assert words_of(r"\text{Even.}") == "even"
    assert words_of("  June   twelfth ") == "june twelfth"
    assert [words_of(text) for text in ("xy", "5", "even 5", "", "x")] == [None] * 5
    assert [is_word(token) for token in ("even", "Monday", "ABC")] == [True] * 3
    assert not any(map(is_word, ("x", "xyz", "ab", "sin", "pi")))


def test_a_currency_in_words_is_no_other():
    assert not grade("5 dollars and 50 cents", "£5.50").correct
    assert grade("5 dollars and 50 cents", "$5.50").correct
