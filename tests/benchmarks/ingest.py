"""Seconds to take in a file like GSM8K's, every row a problem or rejected.

Each repetition reads the file, checks every row, looks for near-duplicates and for overlap between
the splits.
Usage: ingest.py [GSM8K's train.jsonl]; without it a file of as many rows of the same form is made.
"""

import json
import sys
import tempfile
from pathlib import Path

from _measure import report, seconds

from sdcore.config import ProblemsConfig
from sdcore.problems.arithmetic import generate_problems, reference_solution
from sdcore.problems.splits import sort_out

ROWS = 7_473  # of GSM8K's training file
REPEATS, TARGET = 3, 10.0  # seconds


def main(file: Path) -> None:
    config = ProblemsConfig(
        source="jsonl", path=file, solution="answer", answer_pattern=r"####\s*(.+)$"
    )
    rows = sum(1 for _ in file.open("rb"))
    runs = [seconds(lambda: sort_out(config)) for _ in range(REPEATS)]
    splits, rejected = sort_out(config)
    kept = [problem for split in splits.values() for problem in split]
    solved = sum(bool(problem.solution) for problem in kept)
    whole = len(kept) + len(rejected) == rows and solved == len(kept)
    report(
        "ingest",
        max(runs),
        f"under {TARGET:g} s, kept + rejected = all rows",
        whole and max(runs) < TARGET,
        file=file.name,
        rows=rows,
        splits={name: len(split) for name, split in splits.items()},
        rejected=len(rejected),
        with_solution=solved,
        seconds=[round(run, 2) for run in runs],
    )


def made(folder: Path) -> Path:
    """A file in GSM8K's form."""
    rows = [
        {"question": each.question, "answer": f"{reference_solution(each)}\n#### {each.answer}"}
        for each in generate_problems(ROWS, 0, holdout=True)
    ]
    path = folder / "made.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]) if sys.argv[1:] else made(Path(folder)))
