from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcore.contexts import Critique
from sdcore.rollouts import (
    JudgedRollout,
    Neighbours,
    Problem,
    Rollout,
    context_inputs,
    judged,
    neighbours,
)
from sdcore.store.schema import TABLES
from tests.helpers.example import rollout

VALID = Critique("D", 1, "<answer>9</answer>")
REFUSED = Critique(None, None, None, valid=False)


def made(problem: str, index: int, *, correct: bool = False) -> Rollout:
    frame = TABLES["rollouts"].frame(
        [rollout("grpo", 0, "train", 0, problem, index, correct=correct)]
    )
    return Rollout.from_frame(frame)[0]


def given_(problem: str, index: int, critique: Critique | None, correct: bool) -> JudgedRollout:
    return JudgedRollout(
        made(problem, index, correct=correct), Problem(problem, "q", None, "9"), critique
    )


def test_a_rollout_has_the_columns_of_its_table_and_comes_back_equal():
    one = made("p", 0)
    frame = Rollout.to_frame([one, replace(one, rollout_id="other")])
    assert frame.schema == pl.Schema(TABLES["rollouts"].dtypes)
    assert Rollout.to_frame(Rollout.from_frame(frame)).equals(frame)
    assert Rollout.to_frame([]).schema == frame.schema


def test_rollouts_meet_their_problem_and_critique_by_id():
    rows = [made("p", 0), made("q", 0)]
    problems = pl.DataFrame(
        {"problem_id": ["q", "p"], "question": ["Q", "P"], "solution": [None, "s"],
         "reference": ["1", "2"], "split": ["train"] * 2}
    )  # fmt: skip
    first, second = judged(rows, problems, {rows[1].rollout_id: VALID})
    assert (first.problem.question, first.critique, first.valid) == ("P", None, False)
    assert (second.problem.reference, second.critique, second.valid) == ("1", VALID, True)


def test_the_nearest_that_follow_are_quoted_in_cyclic_order():
    # a0 valid, a1 correct, b0 refused, b1 valid and correct
    a0, a1 = given_("a", 0, VALID, False), given_("a", 1, None, True)
    b0, b1 = given_("b", 0, REFUSED, False), given_("b", 1, VALID, True)
    found = neighbours([a0, a1, b0, b1])
    assert [near.other for near in found] == [b1, b1, a0, a0]
    assert [near.sibling for near in found] == [a1, None, b1, None]
    assert neighbours([]) == []


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([None, VALID, REFUSED]), st.booleans()),
        max_size=9,
    )
)
def test_one_pass_finds_what_looking_through_all_others_finds(kinds):
    round_ = [given_(problem, i, *rest) for i, (problem, *rest) in enumerate(kinds)]

    def first(mine, others, usable):
        return next((each for each in others if usable(mine, each)), None)

    def same(mine, other):
        return mine.problem.problem_id == other.problem.problem_id

    for i, (mine, near) in enumerate(zip(round_, neighbours(round_), strict=True)):
        others = round_[i + 1 :] + round_[:i]
        assert near.other is first(mine, others, lambda m, o: o.valid and not same(m, o))
        assert near.sibling is first(mine, others, lambda m, o: o.rollout.correct and same(m, o))


def test_contexts_see_the_rollout_its_problem_and_what_may_be_quoted():
    mine = given_("a", 0, REFUSED, False)
    other, sibling = given_("b", 0, VALID, False), given_("a", 1, None, True)
    seen = context_inputs(mine, Neighbours(other, sibling))
    assert (seen.question, seen.reference, seen.correct) == ("q", "9", False)
    assert (seen.critique, seen.other_critique) == (REFUSED, VALID)
    assert seen.sibling == sibling.rollout.text
    alone = context_inputs(mine, Neighbours(None, None))
    assert (alone.other_critique, alone.sibling) == (None, None)


def test_a_record_of_a_part_of_a_table_cannot_become_its_rows():
    with pytest.raises(AttributeError):
        Problem.to_frame([Problem("p", "q", None, "9")])
