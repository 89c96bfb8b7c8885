"""How reliably the oracle judges solutions of word problems.

Right solutions are written in every wording, and in the reference's order; wrong ones have a fault
of each kind, carried on to the answer. Counted are right solutions that are passed, faults that are
found at their step, called undecided, or placed at another step, and corrected solutions that are
right.

    python tests/benchmarks/word_oracle.py [problems]
"""

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import get_args

from _measure import report

from sdcore.config import WordProblemsConfig
from sdcore.contexts import Critique
from sdcore.critics.corruption import Fault, spoiled
from sdcore.critics.oracle import critique
from sdcore.problems.word_problems import (
    REFERENCE_WORDING,
    WORDINGS,
    Problem,
    as_text,
    draw_problems,
    reference_steps,
    solve,
)
from sdcore.traces import render_trace

PROBLEMS, SLIPS, ELSEWHERE = 2_000, 0.999, 0.001
FAMILIES = (
    WordProblemsConfig(),
    WordProblemsConfig(decimals=True, distractors=3, largest=200),
)


def main(count: int) -> None:
    passed: Counter[bool] = Counter()
    fixed: Counter[bool] = Counter()
    found = {fault: Counter[str]() for fault in get_args(Fault)}
    rng = random.Random(0)
    for place, problem in enumerate(problems(count)):
        steps = list(right_steps(problem))[place % (len(WORDINGS) + 1)]
        passed[judge(problem, steps, as_text(problem.answer)).case == "A"] += 1
        for fault, verdict, critique_ in faulty(problem, rng):
            found[fault][verdict] += 1
            if critique_.valid:
                again = critique(problem.question, as_text(problem.answer), critique_.corrected)
                fixed[again.case == "A" and again.corrected == critique_.corrected] += 1
    share = {fault: {v: n / verdicts.total() for v, n in sorted(verdicts.items())}
             for fault, verdicts in found.items()}  # fmt: skip
    elsewhere = sum(each["elsewhere"] for each in found.values())
    total = sum(each.total() for each in found.values())
    report(
        "word_oracle",
        share["slip"]["found"],
        f"at least {SLIPS:.1%} of slips found at their step; all right and all corrected solutions "
        f"passed; at most {ELSEWHERE:.1%} of faults placed at another step",
        share["slip"]["found"] >= SLIPS
        and not passed[False]
        and not fixed[False]
        and elsewhere <= ELSEWHERE * total,
        problems=passed.total(),
        right_passed=passed[True] / passed.total(),
        corrected_right=fixed[True] / max(fixed.total(), 1),
        faults=total,
        elsewhere=elsewhere / total,
        share=share,
    )


def problems(count: int) -> Iterator[Problem]:
    """Problems of every family."""
    for family in FAMILIES:
        yield from islice(draw_problems(7, holdout=True, family=family), count // len(FAMILIES))


def right_steps(problem: Problem) -> Iterator[list[str]]:
    """The steps of right solutions in every wording."""
    yield from (solve(problem, wording) for wording in WORDINGS)
    yield [REFERENCE_WORDING(step) for step in reference_steps(problem)]


def judge(problem: Problem, steps: Sequence[str], answer: str) -> Critique:
    return critique(problem.question, as_text(problem.answer), render_trace(steps, answer))


def faulty(problem: Problem, rng: random.Random) -> Iterator[tuple[Fault, str, Critique]]:
    """A solution with each kind of fault: the kind, what the oracle makes of it, its critique."""
    for fault in get_args(Fault):
        if spoilt := spoiled(problem, rng, fault):
            steps, wrong = spoilt
            wording = WORDINGS[rng.choice(sorted(WORDINGS))]
            made = judge(problem, [wording(step) for step in steps], as_text(steps[-1].result))
            place = "found" if made.first_wrong_step == wrong else "elsewhere"
            yield fault, place if made.valid else "undecided", made


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PROBLEMS)
