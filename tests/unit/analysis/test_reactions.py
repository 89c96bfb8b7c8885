import pytest

from sdcore.analysis.reactions import reaction
from sdcore.traces import render_trace

QUESTION = "Compute 47+23-31-12."
WRONG = "47+23=71"
CORRECTED = render_trace(["47+23=70", "70-31=39", "39-12=27"], "27")


def after(*rest, answer, wrong=WRONG, corrected=CORRECTED):
    return reaction(QUESTION, render_trace([wrong, *rest], answer), corrected, 1)


@pytest.mark.parametrize(
    ("rest", "answer", "expected"),
    [
        (["71-31=40", "40-12=28"], "28", "repeats"),
        (["70-31=39", "39-12=27"], "27", "repairs"),
        (["31+12=43"], "27", "ignores"),
        ([], "71", "repeats"),
        ([], "70", "repairs"),
        ([], "27", "ignores"),
        (["47+23=70", "71-31=40"], "40", "repairs"),  # the first of the two decides
        (["31+12=43", "71-43=28"], "28", "repeats"),
    ],
)
def test_the_first_value_that_comes_again_decides(rest, answer, expected):
    assert after(*rest, answer=answer) == expected


def test_the_numbers_of_the_tags_are_none():
    """The wrong step's result is 2, as the number of the next step."""
    trace = render_trace(["5-4=2", "9+9=18"], "18")
    corrected = render_trace(["5-4=1", "1+9=10"], "10")
    assert reaction("5-4+9", trace, corrected, 1) == "ignores"


def test_numbers_of_the_question_and_of_the_steps_before_are_no_evidence():
    """31 and 12 are operands: whoever writes them need not have them from the wrong step."""
    assert after("70-31=39", answer="39", wrong="47+31=78") == "repairs"
    trace = render_trace(["47+23=70", "70-31=38", "70-12=58"], "58")
    assert reaction(QUESTION, trace, CORRECTED, 2) == "ignores"


def test_a_step_without_a_number_of_its_own_is_not_judged():
    assert after("70-31=39", answer="39", wrong="47+23 is much") is None
    assert after("70-31=39", answer="39", wrong="47-23=70") is None


def test_a_wrong_step_that_nothing_replaces_is_corrected_by_the_answer():
    trace = render_trace(["47+23=70", "70-43=27", "27+5=32"], "27")
    corrected = render_trace(["47+23=70", "70-43=27"], "27")
    assert reaction("no numbers", trace, corrected, 3) is None  # 27 stands before
    assert reaction("no", render_trace(["8"], "6"), "<answer>6</answer>", 1) == "repairs"


def test_text_without_tags_counts_too():
    text = "<step_1>47+23=71</step_1>so 71 less 31 is 40"
    assert reaction(QUESTION, text, CORRECTED, 1) == "repeats"


def test_the_same_number_in_another_notation():
    corrected = render_trace(["800+400 is 1200", "1200-1=1199"], "1199")
    trace = render_trace(["800+400 is 1,300", "1,200.0-1=1199"], "1199")
    assert reaction("800, 400 and 1", trace, corrected, 1) == "repairs"
