from itertools import islice

import pytest

from sdcore.problems.arithmetic import (
    ORDERS,
    STYLES,
    Move,
    Reading,
    moves,
    parse_question,
    read_step,
    reference_solution,
    verify_steps,
)
from sdcore.tiny_solver.corpus import Document, documents, fact, missing_facts
from sdcore.traces import parse_trace

MISSING = missing_facts(0.4, seed=0)
KINDS = ["plain", "aligned", "reference"]


@pytest.mark.parametrize(
    ("move", "units"),
    [
        (Move(47, 23), ("+", 7, 3)),  # 47 + 23
        (Move(23, 47), ("+", 7, 3)),  # the same sum
        (Move(-31, -12), ("+", 2, 1)),  # -31 - 12 = -(31 + 12)
        (Move(70, -43), ("-", 0, 3)),  # 70 - 43
        (Move(23, -47), ("-", 7, 3)),  # 23 - 47 = -(47 - 23)
        (Move(-43, 70), ("-", 0, 3)),  # -43 + 70 = 70 - 43
    ],
)
def test_a_step_rests_on_one_digit_fact(move, units):
    assert fact(move) == units


def test_the_share_of_missing_facts():
    # 55 unordered sums and 100 differences: 0.4 * 155 = 62
    assert len(MISSING) == 62
    assert missing_facts(0.4, seed=0) == MISSING
    assert missing_facts(0.4, seed=1) != MISSING
    assert missing_facts(0.0, seed=0) == frozenset()


def drawn(kind: str, count: int = 300) -> list[Document]:
    return list(islice(documents(kind, MISSING, seed=0), count))


def read(trace: str) -> list[Reading]:
    return [read_step(step.text) for step in parse_trace(trace).steps]


@pytest.mark.parametrize("kind", KINDS)
def test_no_problem_is_held_out(kind):
    assert not any(parse_question(document.question).held_out for document in drawn(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_errors_are_slips_which_are_not_learnt(kind):
    slips = 0
    for document in drawn(kind):
        problem, trace = parse_question(document.question), parse_trace("".join(document.trace))
        steps = read(trace.text)
        wrong = [i for i, step in enumerate(steps) if step.result != step.move.result]
        before, result, _ = document.trace
        if wrong:
            assert wrong == [parse_trace(before).steps[-1].number - 1]
            assert result == str(steps[wrong[0]].result)
        assert verify_steps(problem, [step.text for step in trace.steps]) == (
            wrong[0] if wrong else None
        )
        assert trace.well_formed
        assert trace.answer == str(steps[-1].result)
        slips += bool(result)
    # None without a hint; else about half, less those that would leave the range of numbers or
    # ask for a missing fact.
    assert slips == 0 if kind == "plain" else 60 < slips < 150


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_fact_is_asked_for_only_where_the_hint_shows_its_result(kind):
    asked = 0
    for document in drawn(kind):
        shown = [{step.move.left, step.move.right} for step in read(document.hint or "")]
        for step in read("".join(document.trace)):
            if fact(step.move) in MISSING:
                assert {step.move.left, step.move.right} in shown
                asked += 1
    assert bool(asked) == (kind != "plain")


def test_the_kinds_of_hints():
    assert all(document.hint is None for document in drawn("plain"))
    for document in drawn("reference"):
        assert document.hint == reference_solution(parse_question(document.question))
    for document in drawn("aligned"):
        before, result, after = document.trace
        assert document.hint.startswith(before)
        assert result or document.hint == before + after


def test_habits_of_order_and_style():
    steps = [read(document.hint) for document in drawn("aligned")]
    moves_of = {
        document.question: parse_question(document.question) for document in drawn("aligned")
    }
    left = [
        [step.move for step in own] == moves(problem, ORDERS["left"])
        for own, problem in zip(steps, moves_of.values())
    ]
    # 70 % of draws; 300 of them: a standard deviation of 2.6 %
    assert 0.6 < sum(left) / 300 < 0.8
    usual = [
        own[0].style == list(STYLES.values())[problem.phrasing]
        for own, problem in zip(steps, moves_of.values())
    ]
    # 85 % + a quarter of the other 15 % = 88.75 %
    assert 0.82 < sum(usual) / 300 < 0.95


def test_documents_are_seeded():
    def first(seed):
        return list(islice(documents("plain", MISSING, seed), 5))

    assert first(0) == first(0)
    assert first(0) != first(1)
