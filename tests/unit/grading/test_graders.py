from dataclasses import replace

import pytest

from sdcore.errors import DataError
from sdcore.grading.graders import Response, Reward, grade_responses, grader


def responses(*texts):
    return [Response(f"r{i}", "1+1?", "2", text, None) for i, text in enumerate(texts)]


def test_the_default_is_binary_on_the_answer_of_the_trace():
    asked = [replace(r, answer=a) for r, a in zip(responses("", "", ""), ("2.0", "3", None))]
    right, wrong, none = grade_responses("math", asked)
    assert (right.value, right.correct, right.reason) == (1.0, True, None)
    assert (wrong.value, wrong.correct) == (0.0, False) and "differs" in wrong.reason
    assert (none.value, none.reason) == (0.0, "no answer")


def test_a_grader_of_ones_own_gives_a_reward_and_named_values():
    @grader
    def share(question, reference, response):
        """Share of characters that are digits."""
        digits = sum(map(str.isdigit, response))
        return digits / len(response), {"digits": digits, "asked": question}

    first, second = share.implementation(responses("22", "2a"))
    assert share.about == "Share of characters that are digits."
    assert first == Reward(1.0, None, '{"digits": 2, "asked": "1+1?"}') and first.correct
    assert second == Reward(0.5, "reward 0.5", '{"digits": 1, "asked": "1+1?"}')
    assert not second.correct


@pytest.mark.parametrize(
    "returned",
    [
        1.01,
        -0.1,
        float("nan"),
        float("inf"),
        None,
        "1",
        "good",
        (0.5, {"x": float("nan")}),
        [1],
        (1,),
        (1, {}, 2),
        iter([1]),
        1j,
    ],
)
def test_what_is_no_reward_is_an_error_that_names_the_rollout(returned):
    def wrong(question, reference, response):
        return returned if response == "bad" else 1

    with pytest.raises(DataError, match=r"'wrong' gives no reward[\s\S]*rollout r1: 1\+1\?"):
        grader(wrong).implementation(responses("good", "bad"))


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_grader_that_raises_is_an_error_that_names_the_rollout(error):
    def wrong(question, reference, response):
        if response == "bad":
            raise error
        return 1

    with pytest.raises(DataError, match=rf"{error.__name__}[\s\S]*rollout r1"):
        grader(wrong).implementation(responses("good", "bad"))


@pytest.mark.parametrize("returned", [True, False, 0, 1, 0.25, (1, {})])
def test_what_is_a_reward(returned):
    (found,) = grader(lambda *_: returned).implementation(responses("x"))
    assert found.value == float(returned[0] if isinstance(returned, tuple) else returned)


def test_no_responses_need_no_grader():
    assert grade_responses("math", []) == []
