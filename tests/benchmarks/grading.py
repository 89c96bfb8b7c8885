"""Plain numeric answers graded a second, and the seconds that a costly answer takes.

Each pair of numbers is another one, as models write them. The costly answers would keep a computer
algebra system busy for hours or fill the memory; each has to be wrong, with a reason, in a second.
"""

import random
from functools import partial

from _measure import report, seconds

from sdcore.grading.answers import grade, grade_many

ANSWERS, REPEATS, RATE = 20_000, 5, 2_000  # answers, and answers a second
LIMIT = 1.0  # seconds for a costly answer
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
    grade("1/2", "0.5")  # starts the workers
    rates = [ANSWERS / seconds(grade_numbers) for _ in range(REPEATS)]
    costs = {name: seconds(partial(require_wrong, text)) for name, text in COSTLY.items()}
    report(
        "grading",
        min(rates),
        f"{RATE} plain answers a second; costly ones wrong within {LIMIT:g} s each",
        min(rates) >= RATE and max(costs.values()) < LIMIT,
        plain_per_second=[round(rate) for rate in rates],
        costly_seconds={name: round(cost, 3) for name, cost in costs.items()},
    )


def grade_numbers() -> None:
    rng = random.Random(0)
    numbers = [f"{rng.choice(['', '$', '-'])}{rng.randint(0, 10**6):,}" for _ in range(ANSWERS)]
    grade_many(numbers, [str(rng.randint(0, 10**6)) for _ in numbers])


def require_wrong(text: str) -> None:
    found = grade(text, "18")
    assert not found.correct and found.reason, text[:40]


if __name__ == "__main__":
    main()
