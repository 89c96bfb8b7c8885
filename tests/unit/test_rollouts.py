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
    lacking_sources,
    neighbours,
    other_solutions,
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
    assert [near.wrong for near in found] == [None, a0, None, b0]
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
        wrong = first(mine, others, lambda m, o: not o.rollout.correct and same(m, o))
        assert near.wrong is wrong


def test_contexts_see_the_rollout_its_problem_and_what_may_be_quoted():
    mine = given_("a", 0, REFUSED, False)
    other, sibling = given_("b", 0, VALID, False), given_("a", 1, None, True)
    seen = context_inputs(mine, Neighbours(other, sibling), ())
    assert (seen.question, seen.reference, seen.correct) == ("q", "9", False)
    assert (seen.critique, seen.other_critique) == (REFUSED, VALID)
    assert seen.sibling == sibling.rollout.text
    alone = context_inputs(mine, Neighbours(None, None), ())
    assert (alone.other_critique, alone.sibling) == (None, None)


def test_a_cut_off_rollout_is_no_wrong_solution():
    finished, cut = given_("a", 0, None, False), given_("a", 1, None, False)
    cut = replace(cut, rollout=replace(cut.rollout, answer=None))
    assert [near.wrong for near in neighbours([finished, cut])] == [None, finished]


def test_a_wrong_solution_is_the_reference_with_a_slip_or_else_a_wrong_rollout():
    wrong = Neighbours(None, None, given_("a", 1, None, False))
    solved = Problem("p", "Compute 3+4+2.", "3+4=7, 7+2=9", "9")
    mine = replace(given_("a", 0, None, False), problem=solved)
    needs = {"wrong_solution"}
    assert context_inputs(mine, wrong, ()).wrong_solution is None
    seen = context_inputs(mine, wrong, needs, "other")
    assert seen.other_solution == "other"
    # the slip of this question is 1, 2 or 10: 3+4 is not 7, and 2 is added to the wrong result
    assert seen.wrong_solution in {f"3+4={7 + n}, {7 + n}+2={9 + n}" for n in (1, 2, 10)}
    for solution, reference in ((None, "9"), ("x is $\\pi$", "\\pi")):
        unslipped = replace(mine, problem=Problem("p", "q", solution, reference))
        assert context_inputs(unslipped, wrong, needs).wrong_solution == wrong.wrong.rollout.text
        assert context_inputs(unslipped, Neighbours(None, None), needs).wrong_solution is None


def test_the_other_solution_is_of_another_question_with_another_answer():
    known = [
        Problem("a", "1+1?", "one and one", "2"),
        Problem("b", "4/2?", "four halves", "2.0"),  # the same answer as a, written otherwise
        Problem("c", "1  +1?".replace("  ", ""), "of the same question", "3"),
        Problem("d", "2+3?", None, "5"),
        Problem("e", "2+4?", "two and four", "6"),
    ]
    found = other_solutions(known, known)
    # a: not b (same answer), not c (same question), d has no solution
    assert found["a"] == "two and four"
    assert found["b"] in {"of the same question", "two and four"}
    assert found["d"] in {"one and one", "four halves", "of the same question", "two and four"}
    assert other_solutions(known[:2], known[:3]) == {"b": "of the same question"}
    assert other_solutions(known, []) == {}


def test_what_rollouts_lack_where_problems_have_no_solution():
    some, none = pl.Series(["s", None]), pl.Series([None, None], dtype=pl.String)
    assert lacking_sources(pl.Series(["s", "t"]), 1) == set()
    assert lacking_sources(some, 1) == {"solution", "wrong_solution"}
    assert lacking_sources(some, 2) == {"solution"}
    assert lacking_sources(none, 2) == {"solution", "other_solution"}


def test_other_solutions_are_spread_and_do_not_depend_on_who_asks():
    known = [Problem(f"p{n}", f"{n}+0?", f"it is {n}", str(n)) for n in range(40)]
    found = other_solutions(known, known)
    assert other_solutions(known[7:9], known).items() <= found.items()
    assert len(set(found.values())) > 15
    assert all(found[f"p{n}"] != f"it is {n}" for n in range(40))


def test_a_record_of_a_part_of_a_table_cannot_become_its_rows():
    with pytest.raises(AttributeError):
        Problem.to_frame([Problem("p", "q", None, "9")])
