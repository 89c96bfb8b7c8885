import pytest

from sdcore.grading.answers import grade
from sdcore.grading.equations import false_equation
from sdcore.problems.arithmetic import generate_problems, reference_solution
from sdcore.slips import SLIPS, wrong_solution
from sdcore.traces import parse_trace


def slipped(text: str, *changes: tuple[str, int]) -> set[str]:
    """A text with a number in braces for each change, by each slip times a factor."""
    return {text.format(*(value + factor * slip for value, factor in changes)) for slip in SLIPS}


@pytest.mark.parametrize(
    ("question", "solution", "reference", "wrong"),
    [
        (  # GSM8K's own form
            "She sold 48 clips in April and half as many in May. How many?",
            "48/2 = <<48/2=24>>24 clips in May.\n48+24 = <<48+24=72>>72 in all.\n#### 72",
            "72",
            slipped(
                "48/2 = <<48/2={0}>>{0} clips in May.\n"
                "48+{0} = <<48+{0}={1}>>{1} in all.\n#### {1}",
                (24, 1), (72, 1),
            ),
        ),
        (  # a factor multiplies the slip; constants and numbers of steps stay
            "He runs 3 km on each of 5 days. How many metres?",
            "Step 1: 3*5 = 15.\nStep 2: 15 * 1,000 = 15,000. So he runs 15,000 m.",
            "15000",
            {
                f"Step 1: 3*5 = {15 + s}.\nStep 2: {15 + s} * 1,000 = {15 + s},000. "
                f"So he runs {15 + s},000 m."
                for s in SLIPS
            },
        ),
        (  # the first slip does not reach the answer, the second does
            "Compute 2+3 and 4*6.", "2+3=5 and 4*6=24.", "24",
            slipped("2+3=5 and 4*6={0}.", (24, 1)),
        ),
        (  # nothing is calculated: the answer itself is off
            "How many?", "As many as 5.", "5", slipped("As many as {0}.", (5, 1)),
        ),
        (  # the answer is a number of the question: where it is given it stays
            "Compute 9-6+6.", "9-6=3, 3+6=9", "9", slipped("9-6={0}, {0}+6={1}", (3, 1), (9, 1)),
        ),
        (  # the sign stays in the text
            "Compute 3-9-1.", "3-9=-6, -6-1=-7", "-7",
            slipped("3-9=-{0}, -{0}-1=-{1}", (6, 1), (7, 1)),
        ),
        ("Half of 7?", "7/2=3.5", "3.5", {f"7/2={3.5 + slip}" for slip in SLIPS}),
        ("x?", r"It is $\frac12$.", r"\frac12", {None}),  # not a plain number
        ("x?", "It is 3.", "5", {None}),  # the reference is not in the solution
    ],
)  # fmt: skip
def test_a_slip_is_carried_on_to_the_answer(question, solution, reference, wrong):
    assert wrong_solution(question, solution, reference) in wrong


def test_reference_solutions_of_the_arithmetic_family_get_one_slip_and_a_wrong_answer():
    first, off = 0, []
    for problem in generate_problems(300, 5, holdout=False):
        right = reference_solution(problem)
        wrong = wrong_solution(problem.question, right, str(problem.answer))
        assert wrong == wrong_solution(problem.question, right, str(problem.answer))
        one, other = parse_trace(right), parse_trace(wrong)
        assert other.well_formed and len(other.steps) == len(one.steps)
        assert not grade(other.answer, str(problem.answer)).correct
        first += one.steps[0].text != other.steps[0].text  # and so it is carried on
        off.append(abs(int(other.answer) - problem.answer) in SLIPS)
    # Elsewhere the first result is also a number of the question, or two results are equal.
    assert first > 270 and sum(off) > 270


def test_only_the_slip_itself_is_a_false_equation():
    text = wrong_solution("Compute 3+4+2+8.", "3+4=7, 7+2=9, 9+8=17", "17")
    steps = text.split(", ")
    assert false_equation(steps[0]) and not any(map(false_equation, steps[1:]))
