import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcore.config import ArithmeticConfig
from sdcore.errors import DataError
from sdcore.problems.arithmetic import (
    ORDERS,
    QUESTIONS,
    STYLES,
    Move,
    Problem,
    continue_trace,
    generate_problems,
    moves,
    parse_question,
    read_step,
    reference_solution,
    solve,
    verify_steps,
)

PROBLEM = Problem((47, 23, 31, 12), ("+", "-", "-"))  # 47+23 = 70, 70-31 = 39, 39-12 = 27
LEFT = ["47+23=70", "70-31=39", "39-12=27"]

problems = st.sampled_from(generate_problems(60, seed=3, holdout=True))
orders, styles = st.sampled_from(sorted(ORDERS)), st.sampled_from(sorted(STYLES))


def test_problem_answer_and_terms():
    assert PROBLEM.terms == (47, 23, -31, -12)
    assert PROBLEM.answer == 27


def test_orders_combine_the_terms_they_name():
    assert moves(PROBLEM, ORDERS["left"]) == [Move(47, 23), Move(70, -31), Move(39, -12)]
    # pairs: 47+23 = 70, -31-12 = -43, 70-43 = 27
    assert moves(PROBLEM, ORDERS["pairs"]) == [Move(47, 23), Move(-31, -12), Move(70, -43)]
    # tail: -31-12 = -43, 23-43 = -20, 47-20 = 27
    assert moves(PROBLEM, ORDERS["tail"]) == [Move(-31, -12), Move(23, -43), Move(47, -20)]


def test_styles_word_additions_and_subtractions():
    assert solve(PROBLEM, "left", "symbols") == LEFT
    assert solve(PROBLEM, "left", "words")[1] == "70 minus 31 is 39"
    assert solve(PROBLEM, "left", "recipe")[0] == "take 47, add 23: 70"
    assert solve(PROBLEM, "tail", "walk")[0] == "from -31 down 12 to -43"


def test_reference_solution_has_its_own_order_and_wording():
    assert reference_solution(PROBLEM) == (
        "<step_1>when we subtract 12 from -31 the result is -43</step_1>"
        "<step_2>when we add 23 to 47 the result is 70</step_2>"
        "<step_3>when we add 70 to -43 the result is 27</step_3><answer>27</answer>"
    )


@given(problems)
def test_reference_solution_is_right_and_is_no_trace_of_the_solver(problem):
    reference = reference_solution(problem)
    steps = re.findall(r"<step_\d>(.*?)</step_\d>", reference)
    assert verify_steps(problem, steps) is None
    assert read_step(steps[-1]).result == problem.answer
    for order in ORDERS:
        for style in STYLES:
            own = solve(problem, order, style)
            assert not set(own) & set(steps)


def test_generation_is_seeded_and_unique():
    drawn = generate_problems(300, seed=7, holdout=False)
    assert drawn == generate_problems(300, seed=7, holdout=False)
    assert drawn[:100] == generate_problems(100, seed=7, holdout=False)
    assert drawn != generate_problems(300, seed=8, holdout=False)
    assert len({problem.key for problem in drawn}) == 300


def test_pre_training_and_held_out_problems_never_meet():
    seen = {problem.key for problem in generate_problems(2000, seed=0, holdout=False)}
    held_out = {problem.key for problem in generate_problems(2000, seed=0, holdout=True)}
    assert not seen & held_out


def test_three_operands_have_two_steps_and_two_orders():
    # left: 47+23 = 70, 70-31 = 39; tail: 23-31 = -8, 47-8 = 39
    problem = Problem((47, 23, 31), ("+", "-"))
    assert solve(problem, "left", "symbols") == ["47+23=70", "70-31=39"]
    assert solve(problem, "tail", "symbols") == ["23-31=-8", "47-8=39"]
    assert reference_solution(problem) == (
        "<step_1>when we subtract 31 from 23 the result is -8</step_1>"
        "<step_2>when we add 47 to -8 the result is 39</step_2><answer>39</answer>"
    )


def test_another_family_is_drawn_read_back_and_continued_like_the_usual_one():
    family = ArithmeticConfig(operands=3, smallest=1, largest=20)
    for problem in generate_problems(60, seed=1, holdout=True, family=family):
        assert parse_question(problem.question) == problem
        assert len(problem.operands) == 3 and max(problem.operands) <= 20 and problem.held_out
        for order in problem.orders:
            steps = solve(problem, order, "words")
            assert verify_steps(problem, steps) is None
            assert all(abs(read_step(step).result) <= 20 for step in steps)
            rest = continue_trace(problem, steps[:1])
            assert len(rest) == 1 and verify_steps(problem, steps[:1] + rest) is None


def test_a_small_family_comes_to_an_end():
    family = ArithmeticConfig(operands=3, smallest=1, largest=10)
    drawn = generate_problems(150, seed=0, holdout=True, family=family)
    assert 20 < len({problem.key for problem in drawn}) == len(drawn) < 150


@given(problems)
def test_every_intermediate_result_stays_in_range(problem):
    results = [move.result for order in ORDERS.values() for move in moves(problem, order)]
    assert all(-99 <= result <= 99 for result in results)


def test_all_question_phrasings_occur_and_are_read_back():
    drawn = generate_problems(60, seed=1, holdout=True)
    assert all(parse_question(problem.question) == problem for problem in drawn)
    assert {problem.question.split(" ")[0] for problem in drawn} == {
        text.split(" ")[0] for text in QUESTIONS
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Compute 47+23.",
        "Compute 1+2+3+4+5.",
        "47+23-31-12",
        "Compute 47+23-31-12. Then 5.",
        "What is love?",
    ],
)
def test_other_questions_are_refused(text):
    with pytest.raises(DataError, match="not an arithmetic question"):
        parse_question(text)


@given(problems, orders, styles)
def test_solved_traces_verify(problem, order, style):
    assert verify_steps(problem, solve(problem, order, style)) is None


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        (["47+23=71", "71-31=40", "40-12=28"], 0),  # wrong sum; goes on consistently
        (["47+23=70", "70-31=49", "49-12=37"], 1),  # wrong difference
        (["47+23=70", "70+31=101"], 1),  # 31 is subtracted in this problem
        (["47+23=70", "47-31=16"], 1),  # 47 has been used
        (["47+23=70", "70-31=39", "39-31=8"], 2),  # 31 has been used
        (["47+23=70", "39-12=27"], 1),  # 39 was never computed
        (["47+23=70", "seventy less 31 is 39"], 1),  # no known style
        ([*LEFT, "27-0=27"], 3),  # nothing is left to combine
        (["47-23=24"], 0),  # 23 is added in this problem
        (["when we add 23 to 47 the result is 70", "70 minus 31 is 39"], None),  # mixed styles
        ([], None),
        (["47 + 23 = 70", "70  -31= 39", "39 \N{MINUS SIGN} 12 =27."], None),
        (["47+23=70 .", "70 minus 31 is 39.", "39 - 12 = 28"], 2),  # 27
        (["47 + 23 is 70"], 0),  # no known style
        (["47+23=7 0"], 0),
    ],
)
def test_the_earliest_wrong_step_is_found(steps, wrong):
    assert verify_steps(PROBLEM, steps) == wrong


@given(problems, orders, styles, st.integers(0, 2), st.integers(-40, 40).filter(bool))
def test_a_changed_result_is_found_where_it_was_changed(problem, order, style, index, change):
    steps = solve(problem, order, style)
    reading = read_step(steps[index])
    head, tail = steps[index].rsplit(str(reading.result), 1)
    steps[index] = f"{head}{reading.result + change}{tail}"
    assert verify_steps(problem, steps) == index


@given(problems, orders, styles, st.integers(1, 3))
def test_a_prefix_is_continued_in_its_own_style(problem, order, style, kept):
    prefix = solve(problem, order, style)[:kept]
    rest = continue_trace(problem, prefix)
    assert verify_steps(problem, prefix + rest) is None
    assert len(prefix + rest) == 3
    assert {read_step(step).style for step in rest} <= {STYLES[style]}
    assert read_step((prefix + rest)[-1]).result == problem.answer


@given(problems, orders, styles, st.integers(0, 2))
def test_a_wrong_next_step_tells_the_order_and_the_style(problem, order, style, kept):
    steps = solve(problem, order, style)
    wrong = re.sub(r"-?\d+$", "99", steps[kept])
    # The full trace comes back even from an empty prefix.
    assert steps[:kept] + continue_trace(problem, steps[:kept], wrong) in [
        solve(problem, other, style)
        for other in ORDERS
        if solve(problem, other, style)[: kept + 1] == steps[: kept + 1]
    ]


def test_a_prefix_in_no_known_order_is_finished():
    # 47-31 = 16, then what is left: 16+23 = 39, 39-12 = 27
    rest = continue_trace(PROBLEM, ["47 minus 31 is 16"])
    assert rest == ["16 plus 23 is 39", "39 minus 12 is 27"]


def test_spaced_symbols_are_continued_with_spaces():
    # 16-30 = -14, -14+54 = 40, 40+10 = 50
    problem = parse_question("Compute 16-30+54+10.")
    steps = ["16 - 30 = -14", "-14 + 54 = 40", "40 + 10 = 50"]
    assert verify_steps(problem, steps) is None
    assert continue_trace(problem, steps[:1]) == steps[1:]
    assert continue_trace(problem, ["16-30=-14."]) == ["-14+54=40", "40+10=50"]


def test_an_unreadable_first_step_gives_the_default():
    assert continue_trace(PROBLEM, [], "well, let me think") == LEFT


def test_a_finished_trace_needs_nothing_more():
    assert continue_trace(PROBLEM, LEFT) == []


def test_a_wrong_prefix_is_refused():
    with pytest.raises(DataError, match="prefix is not correct"):
        continue_trace(PROBLEM, ["47+23=71"])
