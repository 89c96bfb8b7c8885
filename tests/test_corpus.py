import re
from itertools import islice

import pytest

from sdcore.arithmetic import Move, parse_question, read_step, reference_solution, verify_steps
from sdcore.corpus import documents, fact, missing_facts
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


def read(trace: str) -> list:
    return [read_step(step.text) for step in parse_trace(trace).steps]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_correct_and_never_held_out(kind):
    for document in islice(documents(kind, MISSING, seed=0), 200):
        problem, trace = parse_question(document.question), parse_trace(document.trace)
        assert not problem.held_out
        assert verify_steps(problem, [step.text for step in trace.steps]) is None
        assert trace.answer == str(problem.answer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_fact_is_written_only_where_the_hint_shows_its_result(kind):
    for document in islice(documents(kind, MISSING, seed=0), 300):
        shown = re.findall(r"-?\d+", document.hint or "")
        needed = [step for step in read(document.trace) if fact(step.move) in MISSING]
        assert all(str(step.result) in shown for step in needed)
    # the hints make missing facts possible at all; without one there are none
    traces = [document.trace for document in islice(documents(kind, MISSING, seed=0), 300)]
    asked = {fact(step.move) for trace in traces for step in read(trace)} & MISSING
    assert bool(asked) == (kind != "plain")


def test_the_kinds_of_hints():
    drawn = {kind: list(islice(documents(kind, MISSING, seed=0), 50)) for kind in KINDS}
    assert all(document.hint is None for document in drawn["plain"])
    assert all(document.hint == document.trace for document in drawn["aligned"])
    for document in drawn["reference"]:
        assert document.hint == reference_solution(parse_question(document.question))


def test_documents_are_seeded():
    def first(seed):
        return list(islice(documents("plain", MISSING, seed), 5))

    assert first(0) == first(0)
    assert first(0) != first(1)
