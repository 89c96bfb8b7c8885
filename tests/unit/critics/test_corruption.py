import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcore.critics.corruption import SLIPS, corrupted_arithmetic, corrupted_gsm8k, gsm8k_solution
from sdcore.problems.arithmetic import Problem, verify_steps

QUESTION = "Nora buys 3 boxes of 8 pencils at $2 each, and gives 5 away. What are the others worth?"
WORKED = (
    "There are 3*8 = <<3*8=24>>24 pencils.\n"
    "She keeps 24-5=<<24-5=19>>19 of them.\n"
    "So these 19 are worth 19*2=$<<19*2=38>>38.\n"
    "#### 38"
)
PROBLEM = Problem((47, 23, 31, 12), ("+", "-", "-"))


def test_a_worked_solution_becomes_steps_without_notes():
    found = gsm8k_solution(WORKED)
    assert found.steps[0] == "There are 3*8 = 24 pencils." and len(found.steps) == 3
    assert (found.answer, found.first_wrong_step) == ("38", None)


@given(st.integers(0, 500))
def test_what_follows_a_slip_is_computed_from_it(seed):
    found = corrupted_gsm8k(QUESTION, WORKED, random.Random(seed))
    pencils, kept, worth = (int(re.findall(r"= ?\$?(\d+)", step)[-1]) for step in found.steps)
    slips = [pencils - 24, kept - (pencils - 5), worth - 2 * kept]
    assert [number for number, slip in enumerate(slips, 1) if slip] == [found.first_wrong_step]
    assert slips[found.first_wrong_step - 1] in SLIPS
    assert found.answer == str(worth) != "38"
    assert f"keeps {pencils}-5=" in found.steps[1] and f"these {kept} are" in found.steps[2]


@pytest.mark.parametrize(
    ("question", "worked"),
    [
        ("He has 24 pencils ...", "So 3*8=<<3*8=24>>24.\n#### 24"),  # 24 is in the question
        ("3 times 8?", "It is 24.\n#### 24"),  # no note
        ("3 times 8?", "So 3*8=<<3*8=24>>24.\nAnd 12*2=<<12*2=24>>24.\n#### 24"),  # twice
        ("3 times 8?", "So 3*8=<<3*8=24>>24.\n#### 25"),  # does not reach the answer
        ("3 times 8?", "So 3*8=<<3*8=25>>25.\n#### 25"),  # wrong to begin with
        ("3 times 8?", "So 3x8=<<three=24>>24.\n#### 24"),
    ],
)
def test_where_the_truth_would_not_be_certain_nothing_is_made(question, worked):
    assert corrupted_gsm8k(question, worked, random.Random(0)) is None


@given(st.integers(0, 500), st.booleans())
def test_arithmetic_has_its_first_error_where_it_is_said(seed, wrong):
    found = corrupted_arithmetic(PROBLEM, random.Random(seed), wrong=wrong)
    index = verify_steps(PROBLEM, found.steps)
    assert found.first_wrong_step == (None if index is None else index + 1)
    assert (index is not None) == wrong == (found.answer != "27")
