from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcore.grading.algebra import equal
from sdcore.grading.answers import (
    MAX_LENGTH,
    Grade,
    cleaned,
    grade,
    grade_many,
    plain_number,
    readable_many,
    same_answers,
)

numbers = st.from_regex(  # all that counts as a plain number
    r"-?\$?([0-9]{1,9}|[1-9][0-9]{0,2}(,[0-9]{3}){1,2})(\.[0-9]{1,6})?\.?", fullmatch=True
)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("42", "42"), (" 42. ", "42"), ("1,080", "1080"), ("$18", "18"), (r"\$18.50", "18.5"),
        ("-$5", "-5"), ("3.0", "3"), ("007", "7"), ("-0", "0"), ("18 dollars", "18"),
        ("10 km", "10"), ("1/2", "0.5"), (r"\frac{2}{4}", "1/2"), (r"2\sqrt{2}", r"\sqrt{8}"),
        ("x^2-1", "(x-1)(x+1)"), (r"\{2, 1\}", r"\{1, 2\}"), ("x = 5", "5"), (r"\boxed{7}", "7"),
        (r"\text{even}", "even"), ("Monday", "monday"), ("(A)", "A"), (r"50\%", "0.5"),
        ("0.333333", "1/3"), ("€5", "5"), ("12 USD", "12"), ("50%", "50"), ("25 percent", r"25\%"),
        ("10 m^2", "10"), ("5 km/h", "5"), (r"10\text{ cm}", "10"), (r"90^\circ", "90"),
        ("[1, 2)", r"1 \le x < 2"), (r"x \le 3", r"(-\infty, 3]"), ("1, 2", r"\{2, 1\}"),
        (r"[3,4] \cup [1,2]", r"[1,2] \cup [3,4]"), (r"3\frac{1}{2}", "7/2"),
        ("3 1/2", "3.5"), ("-3 1/2", "-3.5"), ("33.3%", "33.3"), ("33.3", r"33.3\%"), ("27°", "27"),
        ("27 °C", "27"), ("**27**", "27"), (r"\[27\]", "27"), (r"\(27\)", "27"), ("−5", "-5"),
    ],
)  # fmt: skip
def test_equal_answers(answer, reference):
    assert grade(answer, reference) == Grade(True, None)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("41", "42"), ("-5", "5"), ("1,08", "108"), ("0,080", "80"), ("18.5", "18"), ("5, 6", "6"),
        ("5 or 6", "6"),
        ("12 3", "3"), ("1/3", "0.3"), ("x", "5"), ("(1,2)", "[1,2]"), ("42 43", "42"), ("?", "0"),
        ("2 x", "2"), ("the answer is 42", "42"), ("2x^2", "2"), ("2m^2", "2"), ("60%", "50"),
        ("[1,2)", "(1,2]"), (r"\{1, 2\}", r"\{1, 3\}"), ("(2, 1)", "(1, 2)"),
        ("3 thousand", "3 million"), ("2 Million", "2"), ("2 dozen", "2"), ("3 and a half", "3"),
        ("5 or more", "5"), ("5 plus x", "5"), ("5 thirds", "5"),
        ("3 1/2", "31/2"), ("33.3%", "33.4"), ("3 1/2 1/2", "4"),
    ],
)  # fmt: skip
def test_different_answers(answer, reference):
    assert grade(answer, reference) == Grade(False, "differs from the reference")


@pytest.mark.parametrize("answer", [None, "", "  "])
def test_no_answer_is_wrong_even_where_the_reference_is_blank(answer):
    assert grade(answer, " ") == Grade(False, "no answer")


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9**9", "9^{9^{9^{9}}}", "2^{99999}", "10^{100,000,000}", "(x+y+z)^{300}", "5!!!!",
        "(10^9)!", "((9^{99})^{99})^{99}", r"\binom{1000000}{500000}", "|x|" * 9,
        r"\sum_{i=1}^{1000000000} i^2", "(" * 100 + "1" + ")" * 100, "x" * 999,
        r"\frac{" * 20 + "1" + "}{2}" * 20, r"\sqrt{" * 140 + "2" + "}" * 140,
    ],
)  # fmt: skip
def test_costly_answers_are_wrong_with_a_reason_and_cost_the_others_nothing(answer):
    costly, *others = grade_many([answer, r"\frac{36}{2}", "x"], ["18", "18", "y"])
    assert not costly.correct and costly.reason is not None
    assert others == [Grade(True), Grade(False, "differs from the reference")]


def test_a_megabyte_is_not_looked_at():
    assert grade("9" * 2**20, "18") == Grade(False, f"longer than {MAX_LENGTH} characters")
    assert grade("9" * 2**20, "9" * 2**20).correct


def test_a_costly_reference_is_compared_as_text():
    assert grade("9^{9^{9}}", "9^{9^{9}}").correct
    assert not grade("5", "9^{9^{9^{9}}}").correct


def test_what_cannot_be_read_as_mathematics_is_known():
    texts = ["1,080", r"\frac{1}{2}", "[1, 2)", "even", "?", r"\frac{1", "x" * 999, "?"]
    assert readable_many(texts) == [True, True, True, True, False, False, False, False]


@settings(deadline=None, max_examples=300)  # the computer algebra warms up
@given(numbers, numbers)
def test_the_fast_path_agrees_with_the_general_one(answer, reference):
    assert None not in (plain_number(answer), plain_number(reference))
    bare = answer.replace("$", "").rstrip(".")
    nudged = bare[:-1] + str((int(bare[-1]) + 1) % 10)
    for other in (reference, nudged, bare + "0" * ("." in bare)):
        assert grade(answer, other).correct == (
            equal(cleaned(answer), cleaned(other)) or answer.strip() == other.strip()
        )


@settings(deadline=None)  # the computer algebra warms up
@given(st.text(max_size=40), st.sampled_from(["18", r"\frac{1}{2}", "x^2+1", "even"]))
def test_any_text_gets_a_grade(answer, reference):
    result = grade(answer, reference)
    assert result.correct == (result.reason is None)


def test_many_are_graded_each_against_its_own_reference():
    answers, references = ["1", "2", None, "1", "1/2"], ["1", "1", "1", "2", "0.5"]
    assert [g.correct for g in grade_many(answers, references)] == [True, False, False, False, True]
    with pytest.raises(ValueError, match="zip"):
        grade_many(["1"], ["1", "2"])


def test_grading_works_in_worker_threads():
    answers = [rf"\frac{{{n}}}{{{2 * n}}}" for n in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        assert all(g.correct for g in pool.map(lambda answer: grade(answer, "0.5"), answers))


@pytest.mark.parametrize(
    ("answers", "codes"),
    [
        # "7" five times in five notations outvotes "0.5" four times.
        (["7", "0.5", "7.0", "0.5", r"\frac{14}{2}", "0.5", "$7", "0.5", r"\boxed{7}"],
         [0, 1, 0, 1, 0, 1, 0, 1, 0]),
        ([None, "5", "", "5", None], [0, 1, 0, 1, 0]),
        (["Monday", "monday ", "Tuesday"], [0, 0, 1]),
        (["x^2-1", "(x-1)(x+1)", "1", "2"], [0, 0, 1, 2]),
        (["50", "0.5", "50%"], [0, 1, 0]),  # 50% equals both, which does not make them equal
        (["0", "-0", "0.00"], [0, 0, 0]),
        (["9^{9^{9^{9}}}", "5", "9^{9^{9^{9}}}"], [0, 1, 0]),
        ([], []),
    ],
)  # fmt: skip
def test_answers_are_grouped_by_value(answers, codes):
    assert same_answers(answers) == codes
