"""The oracle on word problems: any wording passes, faults are found, doubts are said."""

import random
from fractions import Fraction
from itertools import islice

import pytest

from sdcore.config import ProblemsConfig
from sdcore.critics.benchmark import make_trials
from sdcore.critics.corruption import spoiled
from sdcore.critics.derivations import judged
from sdcore.critics.oracle import critique
from sdcore.errors import DataError
from sdcore.problems.word_problems import (
    REFERENCE_WORDING,
    WORDINGS,
    Fact,
    Problem,
    as_text,
    draw_problems,
    reference_steps,
    solve,
)
from sdcore.traces import parse_trace, render_trace

PROBLEM = Problem(
    "bakery", "told", "Amara", "",
    (
        Fact("groups", (Fraction(12), Fraction(8))), Fact("lose", (Fraction(6),)),
        Fact("noise0", (Fraction(41),)), Fact("percent", (Fraction(20),)),
        Fact("price", (Fraction(3),)),
    ),
)  # fmt: skip
# 12 * 8 = 96, 96 - 6 = 90, 20 % of 90 = 18, 90 - 18 = 72, 72 * 3 = 216
RIGHT = ["12 * 8 = 96", "96 - 6 = 90", "90 * 20 / 100 = 18", "90 - 18 = 72", "72 * 3 = 216"]


def judge(steps, answer="216", problem=PROBLEM):
    return critique(problem.question, as_text(problem.answer), render_trace(steps, answer))


def test_right_traces_pass_in_every_wording_and_order():
    for problem in islice(draw_problems(11, holdout=True), 60):
        traces = [solve(problem, wording) for wording in WORDINGS]
        traces.append([REFERENCE_WORDING(step) for step in reference_steps(problem)])
        for steps in traces:
            found = judge(steps, as_text(problem.answer), problem)
            assert (found.valid, found.case, found.first_wrong_step) == (True, "A", None)
            assert found.corrected == render_trace(steps, as_text(problem.answer))
    assert len(WORDINGS) >= 6


@pytest.mark.parametrize(
    "steps",
    [
        ["12 trays × 8 muffins = 96 muffins, and 96 − 6 = 90.", "80% of 90 is 72.", "72*3=$216"],
        ["Amara has 12 * 8 - 6 = 96 - 6 = 90.", "She keeps 90 * 0.8 = 72, worth 3 * 72 = 216."],
        ["12 x 8 = 96", "One minus 20% is 80%.", "96 - 6 = 90", "90 * 80 / 100 = 72", "72*3 = 216"],
        ["96 * 3 = 288", "6 * 3 = 18", "288 - 18 = 270", "270 * 0.2 = 54", "270 - 54 = 216"],
        ["Step 1: 8 * 3 = 24 per tray", "Step 2: 24 * 12 = 288", "288 - 6 * 3 = 270",
         "270 * (1 - 0.2) = 216"],
        [r"\(12 \times 8 = 96\)", r"\[96 - 6 = 90\]", r"\frac{20}{100} \cdot 90 = 18",
         "$90 - 18 = 72$", r"$72 \times 3 = \boxed{216}$"],
        ["12 plus 41 is 53, which is of no importance.", *RIGHT],  # a true aside
        ["96 + 41 = 137", "137 - 6 - 41 = 90", "90 * 0.8 = 72", "72 * 3 = 216"],  # taken out again
    ],
)  # fmt: skip
def test_other_right_ways_pass(steps):
    found = judge(steps)
    assert (found.valid, found.case, found.first_wrong_step) == (True, "A", None)


@pytest.mark.parametrize(
    ("steps", "answer", "case", "wrong"),
    [
        ([*RIGHT[:2], "90 * 20 / 100 = 19", "90 - 19 = 71", "71 * 3 = 213"], "213", "D", 3),
        ([RIGHT[0], "96 - 7 = 89", "89 * 2 = 178"], "178", "D", 2),  # no 7 anywhere
        ([RIGHT[0], "96 + 6 = 102", "102 * 0.8 = 81.6", "81.6 * 3 = 244.8"], "244.8", "D", 2),
        ([*RIGHT[:2], "90 - 41 = 49", "49 * 3 = 147"], "147", "D", 3),  # the distractor
        (["8 + 6 = 14", "14 * 3 = 42"], "42", "D", 1),
        (["8 + 6 = 14", "14 * 12 = 169", "169 * 3 = 507"], "507", "D", 1),  # and a slip on top
        (RIGHT, "215", "D", None),  # only the answer is wrong
        (RIGHT[:4], "72", "C", None),  # it stopped too early
        (RIGHT[:2], "216", "B", None),  # steps are missing
        ([*RIGHT[:3], "90 - 18 = 73", "73 * 3 = 219"], "216", "B", 4),
        (["96 - 6 = 90", "90 - 18 = 70.9", "70.9 * 3 = 212.7"], "212.7", "D", 2),
        (["12 * 8 = 96", "96 / 20 = 5", "5 * 3 = 15"], "15", "D", 2),  # rounded, but 4.8 is exact
    ],
)
def test_wrong_traces_are_wrong_where_they_are(steps, answer, case, wrong):
    found = judge(steps, answer)
    assert (found.valid, found.case, found.first_wrong_step) == (True, case, wrong)
    kept = len(steps) if wrong is None else wrong - 1
    trace = parse_trace(found.corrected)
    assert [step.text for step in trace.steps[:kept]] == steps[:kept]
    again = critique(PROBLEM.question, "216", found.corrected)
    assert (again.case, again.corrected) == ("A", found.corrected)


@pytest.mark.parametrize(
    ("steps", "answer", "says"),
    [
        (["There are 97 muffins.", "97 - 6 = 91", "91 * 3 = 273"], "273", "step 1"),
        (["It comes to some number, 214."], "214", "step 1"),
        (["8 + 6 = 14", "The rest follows."], "99", "step 1"),  # how does it lead there?
        (["12 + 8 = 20", "20 * 3 = 60"], "60", "step 1"),  # 20 may be that of the 20%
        (["96 / (12 + 8) = 4.8", "4.8 * 3 = 14.4"], "14.4", "step 1"),
    ],
)
def test_what_cannot_be_judged_is_said_to_be_undecided(steps, answer, says):
    found = judge(steps, answer)
    assert not found.valid and (found.case, found.corrected) == (None, None)
    assert found.invalid_reason.startswith("undecided") and says in found.invalid_reason


def test_a_cut_off_trace_is_finished_in_the_solvers_notation():
    text = render_trace(["12 × 8 = 96", "96 - 6 = 90"], "216")[:50]
    found = critique(PROBLEM.question, "216", text)
    assert (found.case, found.first_wrong_step) == ("C", None)
    assert found.corrected == render_trace(
        ["12 × 8 = 96", "96 - 6 = 90", "90 × 20 / 100 = 18", "90 - 18 = 72", "72 × 3 = 216"], "216"
    )
    words = judge(["So all the trays hold 12 * 8 = 95 muffins.", "and so on"], "9")
    assert words.corrected.startswith("<step_1>muffins at first: 12 * 8 = 96</step_1>")
    spoken = judge(["12 times 8 is 96", "96 minus 6 is 91"], "91")
    assert "<step_2>96 minus 6 is 90</step_2><step_3>20% of 90 is 18</step_3>" in spoken.corrected


@pytest.mark.parametrize("fault", ["slip", "operand", "distractor", "operation"])
def test_injected_faults_are_found_at_their_step_or_left_undecided(fault):
    rng, undecided, found = random.Random(1), 0, 0
    for problem in islice(draw_problems(5, holdout=True), 120):
        spoilt = spoiled(problem, rng, fault)
        if spoilt is None:
            continue
        steps, wrong = spoilt
        wording = WORDINGS[rng.choice(sorted(WORDINGS))]
        texts = [wording(step) for step in steps]
        made = judge(texts, as_text(steps[-1].result), problem)
        undecided += not made.valid
        if made.valid:
            found += 1
            assert made.first_wrong_step == wrong, (problem.question, texts)
            assert made.corrected.startswith(
                render_trace(texts[: wrong - 1], "")[: -len("<answer></answer>")]
            )
            assert judge_text(problem, made.corrected).case == "A"
    assert found > 90 and undecided <= (0 if fault == "slip" else 8)


def judge_text(problem, text):
    return critique(problem.question, as_text(problem.answer), text)


def test_reasons_name_what_is_wrong():
    def reason(*steps):
        return judged(PROBLEM, steps, Fraction(steps[-1].rpartition(" ")[2]), right=False).reason

    assert reason("12 * 8 = 95") == "'12 * 8 = 95' is false"
    assert reason("12 * 77 = 924") == "77 does not follow from the question"
    assert "no use" in reason("12 + 8 = 20")


def test_trials_of_the_family_are_right_and_wrong_by_turns_and_the_oracle_agrees():
    trials = make_trials(ProblemsConfig(source="word_problems"), 20, seed=3)
    assert [trial.first_wrong_step is None for trial in trials] == [True, False] * 10
    for trial in trials:
        found = critique(trial.question, trial.reference, trial.text)
        assert found.first_wrong_step == trial.first_wrong_step
        assert trial.correct == (trial.first_wrong_step is None)


def test_the_reference_must_be_the_questions():
    with pytest.raises(DataError, match="reference answer is wrong"):
        critique(PROBLEM.question, "217", render_trace(RIGHT, "216"))
