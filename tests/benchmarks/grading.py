"""Plain numeric answers graded per second, and the seconds that a costly answer takes.

All pairs of numbers differ, in notations that models use. The costly answers would keep a computer
algebra system busy for hours or fill the memory; each has to be wrong, with a reason, within the
bound of a worker plus the wider bound of its repetition alone.
"""

import random
from functools import partial

from _measure import report, seconds

from sdcore.grading.answers import grade, grade_many
from sdcore.grading.bounded import ALONE_SECONDS, CPU_SECONDS

ANSWERS, REPEATS, RATE = 20_000, 5, 100_000  # answers, and answers per second
LIMIT = CPU_SECONDS + ALONE_SECONDS + 1.0  # seconds for a costly answer
COSTLY = {
    "tower": "9**9**9**9",
    "power": "2^{99999999}",
    "factorial": "(10^9)!",
    "sum": r"\sum_{i=1}^{1000000000} i^2",
    "expansion": "(x+y+z)^{300}",
    "megabyte": "9" * 2**20,
    "nested fractions": r"\frac{" * 100 + "1" + "}{2}" * 100,
    "nested roots": r"\sqrt{" * 140 + "2" + "}" * 140,
    "nested brackets": "(" * 400 + "1" + ")" * 400,
}


def main() -> None:
    grade("x+x", "2x")  # starts the workers
    rates = [ANSWERS / seconds(grade_numbers) for _ in range(REPEATS)]
    costs = {name: seconds(partial(require_wrong, text)) for name, text in COSTLY.items()}
    report(
        "grading",
        min(rates),
        f"{RATE} plain answers per second; costly ones wrong within {LIMIT:g} s each",
        min(rates) >= RATE and max(costs.values()) < LIMIT,
        plain_per_second=[round(rate) for rate in rates],
        costly_seconds={name: round(cost, 3) for name, cost in costs.items()},
    )


def grade_numbers() -> None:
    rng = random.Random(0)
    numbers = [f"{rng.choice(['', '$', '-'])}{rng.randint(0, 10**6):,}" for _ in range(ANSWERS)]
    grade_many(numbers, [str(rng.randint(0, 10**6)) for _ in numbers])


def require_wrong(text: str) -> None:
    verdict = grade(text, "18")
    assert not verdict.correct and verdict.reason, text[:40]


if __name__ == "__main__":
    main()
