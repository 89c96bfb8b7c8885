import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcore.contexts import Critique
from sdcore.critics.oracle import critique
from sdcore.errors import DataError
from sdcore.grading.answers import grade
from sdcore.problems.arithmetic import (
    ORDERS,
    STYLES,
    Problem,
    generate_problems,
    moves,
    phrase,
    solve,
    verify_steps,
)
from sdcore.traces import parse_trace, render_trace

PROBLEM = Problem((47, 23, 31, 12), ("+", "-", "-"))  # 47+23 = 70, 70-31 = 39, 39-12 = 27
ONE, TWO, THREE = "47+23=70", "70-31=39", "39-12=27"
GOOD = render_trace([ONE, TWO, THREE], "27")


def judge(trace: str) -> Critique:
    return critique(PROBLEM.question, "27", trace)


@pytest.mark.parametrize(
    ("steps", "answer", "case", "wrong", "corrected"),
    [
        ([ONE, TWO, THREE], "27", "A", None, [ONE, TWO, THREE]),
        ([ONE, THREE], "27", "B", None, [ONE, TWO, THREE]),  # one is missing in the middle
        ([ONE, TWO], "27", "B", None, [ONE, TWO, THREE]),  # or at the end
        ([ONE, "70-31=38", THREE], "27", "B", 2, [ONE, TWO, THREE]),  # two errors cancel
        ([ONE, TWO], "39", "C", None, [ONE, TWO, THREE]),  # it stopped too early
        ([ONE, "70-31=38", "38-12=26"], "26", "D", 2, [ONE, TWO, THREE]),
        (["47+23=60", "60-31=29", "29-12=17"], "17", "D", 1, [ONE, TWO, THREE]),
        ([ONE, TWO, "39-12=28"], "28", "D", 3, [ONE, TWO, THREE]),
        ([ONE, TWO, THREE], "72", "D", None, [ONE, TWO, THREE]),  # only the answer is wrong
        ([ONE, "70-30=40", "40-12=28"], "28", "D", 2, [ONE, TWO, THREE]),  # no 30 to use
        ([ONE, "I give up"], "0", "D", 2, [ONE, TWO, THREE]),
    ],
)
def test_cases(steps, answer, case, wrong, corrected):
    found = judge(render_trace(steps, answer))
    assert (found.case, found.first_wrong_step) == (case, wrong)
    assert found.corrected == render_trace(corrected, "27")
    assert found.valid and found.invalid_reason is None
    assert (found.attempts, found.tokens) == (1, 0)


def test_a_wrong_first_step_still_sets_the_order_and_the_wording():
    """It subtracts first: -31-12 = -43, then 23-43 = -20 and 47-20 = 27."""
    found = judge(render_trace(["-31 minus 12 is -42", "23 minus 42 is -19"], "28"))
    right = ["-31 minus 12 is -43", "23 minus 43 is -20", "47 minus 20 is 27"]
    assert found.corrected == render_trace(right, "27")


@pytest.mark.parametrize("length", [0, 5, 12, 16, 25, 30, 50, len(GOOD) - 9, len(GOOD) - 1])
def test_a_truncated_right_trace_is_finished(length):
    found = judge(GOOD[:length])
    assert (found.case, found.first_wrong_step, found.corrected) == ("C", None, GOOD)


def test_a_truncated_trace_with_a_wrong_step_is_incorrect():
    found = judge(render_trace([ONE, "70-31=38", "38-12=26"], "26")[:60])
    assert (found.case, found.first_wrong_step, found.corrected) == ("D", 2, GOOD)


def test_right_traces_come_back_verbatim_with_all_their_white_space():
    spaced = GOOD.replace("><", "> \n<") + "\n"
    assert judge(spaced).case == "A" and judge(spaced).corrected == spaced
    wrong = spaced.replace("39-12=27", "39-12=26")
    assert judge(wrong).corrected == (
        "<step_1>47+23=70</step_1> \n<step_2>70-31=39</step_2>"
        "<step_3>39-12=27</step_3><answer>27</answer>"
    )


@pytest.mark.parametrize(
    ("trace", "case"),
    [
        (GOOD.replace("step_2", "step_3"), "B"),
        (GOOD.replace("</step_2>", "</step_2> and so"), "B"),
        (GOOD.replace("</step_1>", ""), "B"),
        (GOOD + "<answer>27</answer>", "B"),
        (GOOD + "<answer>28</answer>", "D"),
        (GOOD.replace("<answer>27", "<answer>"), "C"),
        ("", "C"),
        ("no tags at all", "C"),
        (r"the answer is \boxed{27}", "B"),
    ],
)
def test_a_malformed_trace_is_put_into_form(trace, case):
    found = judge(trace)
    assert (found.case, found.first_wrong_step, found.corrected) == (case, None, GOOD)


problems = st.sampled_from(generate_problems(40, seed=5, holdout=True))
orders, styles = st.sampled_from(sorted(ORDERS)), st.sampled_from(sorted(STYLES))


@settings(deadline=None)
@given(problems, orders, styles, st.integers(0, 2), st.integers(-99, 99), st.integers(-99, 99))
def test_the_first_error_is_found_and_the_prefix_kept(problem, order, style, place, result, answer):
    steps = solve(problem, order, style)
    steps[place] = phrase(moves(problem, ORDERS[order])[place], STYLES[style], result)
    text = render_trace(steps, str(answer))
    found = critique(problem.question, str(problem.answer), text)
    if result != moves(problem, ORDERS[order])[place].result:
        assert found.first_wrong_step == place + 1
        assert found.case == ("B" if answer == problem.answer else "D")
    kept = parse_trace(text).steps[place].start - len("<step_1>")
    assert found.corrected.startswith(text[:kept])
    assert_fixed(problem, found)


@settings(deadline=None)
@given(problems, orders, styles, st.data())
def test_whatever_happens_to_a_trace_a_valid_critique_is_right(problem, order, style, data):
    steps = data.draw(st.permutations(solve(problem, order, style) * 2))[
        : data.draw(st.integers(0, 6))
    ]
    text = render_trace(steps, str(problem.answer + data.draw(st.integers(-1, 1))))
    at = data.draw(st.integers(0, len(text)))
    junk = data.draw(st.sampled_from(["", "x", "<step_2>", "</step_1>", "<answer>7</answer>"]))
    text = text[:at] + junk + text[at : data.draw(st.integers(at, len(text)))]
    found = critique(problem.question, str(problem.answer), text)
    if found.valid:
        assert (found.case in ("A", "B")) == grade(
            parse_trace(text).answer, str(problem.answer)
        ).correct
        assert_fixed(problem, found)
    else:
        assert found.invalid_reason and (found.case, found.corrected) == (None, None)


def assert_fixed(problem: Problem, found: Critique) -> None:
    trace = parse_trace(found.corrected)
    assert trace.well_formed and trace.answer == str(problem.answer)
    assert verify_steps(problem, [step.text for step in trace.steps]) is None


def test_a_fragment_of_a_step_is_no_quote():
    found = judge("<step_1>47</step_2>+23=70</step_1><answer>70</answer>")
    assert (found.first_wrong_step, found.valid) == (1, True)
    assert found.corrected.startswith("<step_1>47+23=70</step_1>")


def test_steps_that_are_right_in_the_wrong_place_are_not_quoted():
    """The second step cannot come first, but the mended trace would hold its text again."""
    found = judge(render_trace([TWO, ONE, THREE], "28"))
    assert not found.valid and found.invalid_reason == "step 1 is wrong, but quoted"


def test_other_problems_need_another_critic():
    with pytest.raises(DataError, match="language model as critic"):
        critique("Natalia sold 48 clips. How many?", "48", GOOD)
    with pytest.raises(DataError, match="reference answer is wrong"):
        critique(PROBLEM.question, "28", GOOD)
