from dataclasses import replace

import pytest

from sdcore.contexts import Critique
from sdcore.critics.validation import (
    Submission,
    _other_notation,
    infidelity,
    misalignment,
    verbatim_prefix,
)
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
        ({"case": None}, "no case is named"),
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


QUESTION = "Ann has 12 boxes of 4 pens, gives 14 pens away, and buys 9. How many does she have?"
OWN = (
    "She has 12 * 4 = 48 pens at first.",
    "After the gift she has 48 - 14 = 44 pens.",
    "In the end she has 44 + 9 = 53 pens.",
)


def refusal(*new: str, answer: str = "43") -> str | None:
    """Why a critique with these steps from the second on is refused."""
    critique = Critique("D", 2, render_trace([OWN[0], *new], answer))
    handed = Submission(QUESTION, render_trace(OWN, "53"), False, answer)
    assert misalignment(critique, handed) is None
    return infidelity(critique, handed)


SECOND, THIRD = "After the gift she has 48 - 14 = 34 pens.", "In the end she has 34 + 9 = 43 pens."


@pytest.mark.parametrize(
    "new",
    [
        (SECOND, THIRD),
        ("After the gift she has 48 – 14 = 34 pens.", "She’s left with 34 + 9 = 43 pens…"),
        ("After the gift she has 48 − 14 = 34 pens.", "In the end she has 34 + 9 = 43 “pens”."),
        (SECOND, THIRD, "So there are 43 pens in all."),
        ("Without those 14 pens, 34 are still there.", THIRD),
        ("She got 3 questions wrong, but after the gift she has 48 - 14 = 34 pens.", THIRD),
        ("With no mistakes per page, she has 48 - 14 = 34 pens.", THIRD),
        ("They wait 5 minutes and she has 48 - 14 = 34 pens.", THIRD),
        ("She gave 7 correct answers and has 48 - 14 = 34 pens.", THIRD),
        ("After correcting 3 papers she has 48 - 14 = 34 pens.", THIRD),
        ("She fixed the bike, and the price is 20% off, so 48 - 14 = 34 pens.", THIRD),
    ],
)  # fmt: skip
def test_typography_conclusions_and_everyday_words_are_no_reason_to_refuse(new):
    assert refusal(*new) is None


@pytest.mark.parametrize(
    "remark",
    [
        "as the worked solution has it", "as the sample solution says", "like the answer",
        "so that she needs to end up with 43", "since she must end up at 43",
        "which is what the solution's key gives: the solution key", 
        "because the answer has to be 43",
        "as the reference\u00a0solution says", "which agrees with the solution",
        "working backwards",
        "you forgot the gift", "please include them this time", "which were left out above",
        "let me double-check", "let me recalculate that", "I missed that", "this is right",
        "on second thought", "unlike the solver’s answer", "and this is correct", "it checks out",
        "the mistake was here", "the wrong result", "this step was wrong", "38 is wrong",
        "correcting the sum", "redoing it with care", "so it was off by ten",
        "fixing the last result", "this step should read 34", "the other value was too high",
        "(corrected)", "the correct answer", "as missed in the first step", "hold on",
    ],
)  # fmt: skip
def test_leaks_and_remarks_are_refused(remark):
    reason = refusal(f"After the gift she has 48 - 14 = 34 pens, {remark}.", THIRD)
    assert "reference is spoken of" in reason or "a remark" in reason


@pytest.mark.parametrize(
    "step", ["The number of pens is = 43.", "She has 43 pens.", "So the total is $43."]
)
def test_an_answer_that_is_only_stated_is_refused(step):
    assert refusal(step) is not None


@pytest.mark.parametrize("sign", ["\u0435", "\u200b", "\u202e", "\uff13", "é", "\u0456", "\x7f"])
def test_letters_and_invisible_characters_stay_refused(sign):
    assert "the character" in refusal(f"After the gift she has 48 - 14 = 34 pens{sign}.", THIRD)


def test_a_wrong_step_is_quoted_in_any_spacing_and_case():
    quote = "It was not  AFTER the gift she has 48-14 =44 pens., but 34."
    assert refusal(quote, THIRD) == "step 2 is wrong, but quoted"


def test_many_more_steps_than_the_solver_wrote_are_refused():
    more = [f"Pen {n} is hers, as 34 + {n} = {34 + n} says." for n in range(1, 8)]
    assert "new steps, but" not in (refusal(SECOND, *more[:7]) or "")  # 8 are 2 * 3 + 2
    assert refusal(SECOND, *more, THIRD) == "9 new steps, but the solver wrote 3 in all"


def test_a_sum_that_does_not_hold_is_refused_in_new_and_in_kept_steps():
    for step in ("After the gift she has 48 - 14 = 35 pens.", "She has 50 - 14 = 34 pens."):
        assert "does not hold" in refusal(step, THIRD)
    kept = Critique("D", 3, render_trace([ONE, "70-31=38", "38-11=27"], "27"))
    submission = Submission("47+23-31-12?", WRONG, False, "27")
    assert "70-31=38" in infidelity(kept, submission)


@pytest.mark.parametrize(
    ("own", "new", "reason"),
    [
        ([ONE, "70-31=38"], "70-31: 39", "one without ="),  # two formulas are a notation
        ([ONE], "70-31: 39", None),  # one step alone is none
        ([ONE, "70-31=38"], "70 - 31 : 39", "one without ="),
        (
            [f"She has {ONE} pens in all", "After that 70-31=38 are left"],
            "Leaving 39 pens",
            "one without =",
        ),
        (
            [f"She has {ONE} pens in all", "After that 70-31=38 are left"],
            "So she has 39 left",
            None,
        ),
    ],
)
def test_steps_that_all_have_a_result_ask_for_one(own, new, reason):
    found = _other_notation([new], own)
    assert found is None if reason is None else reason in found


def test_a_finished_trace_repeats_the_finished_steps_first():
    submission = Submission("47+23-31-12?", f"<step_1>{ONE}</step_1><step_2>70-", None, "27")
    assert infidelity(Critique("C", None, GOOD), submission) is None
    turned = render_trace([TWO, ONE, THREE], "27")
    reason = "case C, but the finished steps are not repeated first"
    assert infidelity(Critique("C", None, turned), submission) == reason


def test_a_right_trace_is_passed_unless_a_step_of_it_is_called_wrong():
    handed = Submission("47+23-31-12?", GOOD, True, "27")
    assert infidelity(Critique("A", None, GOOD), handed) is None
    assert infidelity(Critique("A", 2, GOOD), handed) == "case A, but step 2 is called wrong"


@pytest.mark.parametrize(
    ("rewritten", "reason"),
    [
        ("70-31 is 39, not 38: 70-31=39", "step 2 is wrong, but its result 38 is named"),
        ("70-31: 39", "new steps are in another notation: one without ="),
        (TWO, None),
    ],
)
def test_a_rewritten_step_neither_names_the_wrong_result_nor_leaves_out_its_own(rewritten, reason):
    submission = Submission("47+23-31-12?", WRONG, False, "27")
    critique = replace(MENDED, corrected=render_trace([ONE, rewritten, THREE], "27"))
    assert infidelity(critique, submission) == reason
