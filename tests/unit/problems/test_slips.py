import random

import pytest

from sdcore.problems.arithmetic import carried_on, parse_question, read_step
from sdcore.problems.slips import SHIFTS, slipped
from sdcore.traces import parse_trace, render_trace

QUESTION = "Compute 47+23-31-12."
PROBLEM = parse_question(QUESTION)


def test_what_follows_a_slip_is_computed_from_the_wrong_result():
    done = carried_on(PROBLEM, PROBLEM.orders["left"], 1, 10)
    assert [(move.left, move.right, result) for move, result in done] == [
        (47, 23, 70), (70, -31, 49), (49, -12, 37),
    ]  # fmt: skip
    right = carried_on(PROBLEM, PROBLEM.orders["pairs"])
    assert [result for _, result in right] == [70, -43, 27]


@pytest.mark.parametrize(
    "steps",
    [
        ["47+23=70", "70-31=39", "39-12=27"],
        ["47 plus 23 is 70", "70 minus 31 is 39", "39 minus 12 is 27"],
        ["take 31, subtract 12: -43"],  # no trace of this problem
    ],
)
def test_a_sum_slips_once_in_its_own_words(steps):
    places = set()
    for seed in range(40):
        found = slipped(QUESTION, render_trace(steps, "27"), random.Random(seed))
        if len(steps) == 1:
            assert found is None
            continue
        trace = parse_trace(found.trace)
        readings = [read_step(step.text) for step in trace.steps]
        (place,) = [i for i, each in enumerate(readings) if each.result != each.move.result]
        slip = readings[place]
        assert slip.result - slip.move.result in SHIFTS
        assert {reading.style for reading in readings} == {read_step(steps[0]).style}
        assert trace.well_formed and trace.answer == str(readings[-1].result) != "27"
        start, end = found.wrong
        assert found.trace[start:end] == str(slip.result) and end == trace.steps[place].end
        places.add(place)
    assert len(steps) == 1 or places == {0, 1, 2}


BOXES = "Anna has three boxes with eight pencils in each and loses five."


def test_equalities_are_carried_on_by_hand():
    """Either 24 is wrong and 5 less follows from it, or only the difference is."""
    right = render_trace(["3 * 8 = 24 pencils", "24 - 5 = 19, so 19 are left"], "19")
    end = "{0} - 5 = {1}, so {1} are left"
    follows = {(f"3 * 8 = {24 + s} pencils", end.format(24 + s, 19 + s)) for s in SHIFTS}
    itself = {("3 * 8 = 24 pencils", end.format(24, 19 + s)) for s in SHIFTS}
    seen = set()
    for seed in range(200):
        found = slipped(BOXES, right, random.Random(seed))
        trace = parse_trace(found.trace)
        first, second = (step.text for step in trace.steps)
        assert trace.answer == second.split()[-3]
        wrong = found.trace[slice(*found.wrong)]
        assert wrong == (trace.answer if "24 -" in second else first.split()[4])
        seen.add((first, second))
    assert seen == follows | itself


@pytest.mark.parametrize(
    ("question", "steps", "answer"),
    [
        (BOXES, ["There are some", "left"], "19"),  # no equality
        (BOXES, ["3 * 8 = 25", "that is all"], "19"),  # one that does not hold
        ("She had 24 and 19.", ["3 * 8 = 24", "24 - 5 = 19"], "19"),  # numbers of the question
        (BOXES, ["3 * 8 = 24", "4 * 6 = 24"], "24"),  # which 24 is meant later?
        (BOXES, ["3 * 8 = 24"], "7"),  # the answer does not depend on it
    ],
)
def test_where_it_is_uncertain_what_depends_on_a_result_nothing_slips(question, steps, answer):
    trace = render_trace(steps, answer)
    assert all(slipped(question, trace, random.Random(seed)) is None for seed in range(10))
