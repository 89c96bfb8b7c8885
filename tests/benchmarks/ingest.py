"""Seconds to take in GSM8K's training file, every row a problem or rejected, and grading speed.

Each repetition reads the file, checks every row, looks for near-duplicates and for overlap between
the splits; grading compares plain numbers, each pair once, on two cores at most.
Usage: ingest.py [file]
"""

import random
import sys
from pathlib import Path

from _measure import report, seconds

from sdcore.config import ProblemsConfig
from sdcore.grading import grade_many
from sdcore.problems import sort_out

FILE = Path(__file__).parents[3] / "shared/data/gsm8k/train.jsonl"
REPEATS, TARGET = 3, 10.0  # seconds
ANSWERS, RATE = 20_000, 2_000  # answers, answers a second


def main(file: Path = FILE) -> None:
    config = ProblemsConfig(
        source="jsonl", path=file, solution="answer", answer_pattern=r"####\s*(.+)$"
    )
    rows = sum(1 for _ in file.open("rb"))
    runs = [seconds(lambda: sort_out(config)) for _ in range(REPEATS)]
    splits, rejected = sort_out(config)
    kept = [problem for split in splits.values() for problem in split]
    solved = sum(bool(problem.solution) for problem in kept)
    whole = len(kept) + len(rejected) == rows and solved == len(kept)
    rates = [ANSWERS / seconds(grade_numbers) for _ in range(REPEATS)]
    report(
        "ingest",
        max(runs),
        f"under {TARGET:g} s, kept + rejected = all rows; {RATE} plain answers graded a second",
        whole and max(runs) < TARGET and min(rates) >= RATE,
        rows=rows,
        splits={name: len(split) for name, split in splits.items()},
        rejected=len(rejected),
        with_solution=solved,
        seconds=[round(run, 2) for run in runs],
        graded_per_second=[round(rate) for rate in rates],
    )


def grade_numbers() -> None:
    """Distinct pairs of numbers, as models write them."""
    rng = random.Random(0)
    numbers = [f"{rng.choice(['', '$', '-'])}{rng.randint(0, 10**6):,}" for _ in range(ANSWERS)]
    grade_many(numbers, [str(rng.randint(0, 10**6)) for _ in numbers])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
