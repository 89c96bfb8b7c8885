"""Answers compared in this process; `test_answers.py` has the bounded one."""

import pytest

from sdcore.grading.algebra import difference, readable


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Monday", "monday"), ("seventeen", "17"), ("one hundred nine", "109"),
        ("one hundred ten", "110"), ("ninety nine", "99"), ("two and a half", "5/2"),
        ("a dozen", "12"), ("1011_2", "1011_2"), ("50\\%", "0.5"),
        ("5 km", "5000 m"), ("x^2-1", "(x-1)(x+1)"), ("2\\sqrt{2}", "\\sqrt{8}"),
        ("3 \\times 10^5", "300000"), ("y+1", "x = y+1"), ("6", "x = 2+4 = 6"),
    ],
)  # fmt: skip
def test_the_same_in_other_words(answer, reference):
    assert difference(answer, reference) is None
    assert difference(reference, answer) is None


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Monday", "Tuesday"), ("yes", "no"), ("blue", "5"), ("seventeen", "18"),
        ("ninety ten", "100"), ("ninety nine", "909"), ("five six", "11"), ("1011_2", "1010_2"),
        ("5 km", "5 m"), ("x^2-1", "(x-1)^2"),
        ("2\\sqrt{2}", "\\sqrt{6}"), ("£5", "$5"), ("x = 5 = 6", "6"),
    ],
)  # fmt: skip
def test_another_answer(answer, reference):
    assert difference(answer, reference)
    assert difference(reference, answer)


def test_a_product_is_a_finished_number_only_with_a_power_of_ten():
    assert difference("363", "3 \\times 11^2") is None
    assert "undone" in difference("3 \\times 11^2", "363")


def test_what_is_no_mathematics_and_no_words_cannot_be_read():
    assert readable("seventeen") and readable("1011_2") and readable("\\frac{1}{2}")
    assert not readable("(") and not readable("\\frac{1}{")
