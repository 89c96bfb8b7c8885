import random

import pytest

from sdcore.problems.arithmetic import carried_on, parse_question, read_step
from sdcore.problems.slipped import SHIFTS, slipped
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


def test_other_traces_slip_at_the_first_calculated_number():
    """24 becomes 25, 26 or 34, and 24 - 5 = 19 follows from it."""
    right = render_trace(["3 * 8 = 24 pencils", "24 - 5 = 19, so 19 are left"], "19")
    found = slipped(BOXES, right, random.Random(0))
    slip = int(found.trace[slice(*found.wrong)])
    assert slip - 24 in SHIFTS
    steps = [f"3 * 8 = {slip} pencils", f"{slip} - 5 = {slip - 5}, so {slip - 5} are left"]
    assert found.trace == render_trace(steps, str(slip - 5))
    assert found.wrong[0] == found.trace.index(str(slip))


def test_a_trace_without_its_answer_does_not_slip():
    assert slipped(BOXES, "<step_1>There are some</step_1>", random.Random(0)) is None
