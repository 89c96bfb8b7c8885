from dataclasses import replace

import pytest

from sdcore.contexts import Critique
from sdcore.critics.validation import Submission, misalignment, verbatim_prefix
from sdcore.traces import parse_trace, render_trace

ONE, TWO, THREE = "47+23=70", "70-31=39", "39-12=27"
GOOD = render_trace([ONE, TWO, THREE], "27")


def flaw(critique: Critique, trace: str) -> str | None:
    correct = parse_trace(trace).answer == "27"
    return misalignment(critique, Submission("47+23-31-12?", trace, correct, "27"))


WRONG = render_trace([ONE, "70-31=38", "38-12=26"], "26")
MENDED = Critique("D", 2, GOOD)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"corrected": None}, "not well-formed"),
        ({"corrected": GOOD + " as shown"}, "not well-formed: text outside the tags"),
        ({"corrected": GOOD.replace("<answer>27", "<answer>26")}, "ends in 26, the reference"),
        ({"case": "A"}, "case A, but the trace's answer is wrong"),
        ({"case": "B"}, "case B, but the trace's answer is wrong"),
        ({"case": None}, "case None"),
        ({"first_wrong_step": 4}, "step 4 is called wrong, but the trace has 3 steps"),
        ({"first_wrong_step": 0}, "step 0 is called wrong"),
        ({"corrected": GOOD.replace("47+23", "47 + 23")}, "step 2 are not repeated verbatim"),
        ({"corrected": GOOD.replace("<step_2>", " <step_2>", 1).replace("70-31=39", "70-31=38")},
         "step 2 is wrong, but quoted"),
        ({"corrected": GOOD.replace("70-31=39", "not 70-31=38 but 39")},
         "step 2 is wrong, but quoted"),
        ({"first_wrong_step": None}, "a right step is not repeated verbatim and in order"),
    ],
)  # fmt: skip
def test_what_is_not_step_aligned_is_named(changes, reason):
    assert flaw(MENDED, WRONG) is None
    assert reason in (flaw(replace(MENDED, **changes), WRONG) or "")


def test_a_right_trace_may_not_be_changed():
    assert flaw(Critique("A", None, GOOD), GOOD) is None
    assert "was changed" in (flaw(Critique("A", None, GOOD + "\n"), GOOD) or "")
    assert "is right" in (flaw(Critique("D", 2, GOOD), GOOD) or "")


@pytest.mark.parametrize(
    ("critique", "steps"),
    [
        (MENDED, 1),
        (Critique("D", 1, GOOD.replace("47+23", "23+47")), 0),
        (Critique("C", None, GOOD), 1),
        (Critique("A", None, WRONG), 3),
    ],
)
def test_the_verbatim_prefix_ends_with_a_whole_step(critique, steps):
    trace = parse_trace(WRONG)
    whole = WRONG if steps == 3 else WRONG[: WRONG.index(f"<step_{steps + 1}>")]
    assert verbatim_prefix(critique, trace) == whole
