"""How time and memory grow with a workspace: 10^4 to 10^6 rollouts, 10^3 to 10^5 problems.

Problems are a hundred templates with other names and numbers, read from a file, screened and split.
Rollouts are those of `_rows.py`, ten thousand to a batch, beside a finished smoke run of the
quickstart. Each size has a process of its own: append and read a batch, read the policies that a
run resumes from, list problems as the viewer does, export their run, and make summary and report of
the smoke run.
Usage: growth.py [largest power of ten of rollouts, 4 to 6] [of problems, 3 to 5]
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import _rows
from _measure import exponent, report, seconds

from sdcore.analysis import comparison
from sdcore.config import ProblemsConfig
from sdcore.problems.splits import sort_out
from sdcore.reports.experiment import render_report
from sdcore.reports.viewer import browsing
from sdcore.store.database import Store
from sdcore.store.export import export

TARGET = 1.1
RUN = _rows.RUN["experiment_id"]
THINGS = ("apples", "books", "coins", "stamps", "pens", "shells", "cards", "eggs", "nails", "keys")
PLACES = ("market", "harbour", "school", "station", "library", "museum", "garden", "bakery",
          "garage", "theatre")  # fmt: skip
NAMES = ("Ann", "Bob", "Eve", "Max", "Tom")
QUESTION = (
    "{name} brings {a} {thing} to the {place} on a sunny day before noon and buys {b} more there "
    "from an old friend who likes them very much. Then {other} takes {c} of them away. How many "
    "{thing} has {name} left at the end of that day at the {place}?"
)


def problems(count: int, folder: Path) -> dict[str, float]:
    """Seconds to prepare so many problems."""
    drawn, path = random.Random(0), folder / "problems.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            a, b, c = (drawn.randint(100, 999) for _ in range(3))
            name, other = drawn.sample(NAMES, 2)
            slots = {"a": a, "b": b, "c": c, "name": name, "other": other}
            slots |= {"thing": drawn.choice(THINGS), "place": drawn.choice(PLACES)}
            row = {"question": QUESTION.format(**slots), "answer": str(a + b - c)}
            file.write(json.dumps(row) + "\n")
    config = ProblemsConfig(source="jsonl", path=path, train=count // 2, validation=count // 10,
                            test=count // 10)  # fmt: skip
    return {"prepare": seconds(lambda: sort_out(config))}


def rollouts(count: int, folder: Path) -> dict[str, float]:
    """Seconds of each access to a workspace of so many rollouts."""
    last = count // _rows.ROLLOUTS - 1
    small = ["run", "quickstart", "--scale", "smoke", "--workspace", str(folder)]
    sdcore = Path(sys.executable).with_name("sdcore")
    subprocess.run([sdcore, *small], check=True, capture_output=True)
    with Store(folder / "sdcore.duckdb") as store:
        finished = store.rows("experiments")["experiment_id"].item()
        store.append_missing(problems=_rows.problems())
        for batch in range(last):
            append(store, batch)
        lineage = _rows.lineage(last)
        return {
            "append": seconds(lambda: append(store, last)),
            "read a round": seconds(lambda: store.rows("rollouts", policy_id=f"policy{last}")),
            "resume": seconds(lambda: store.rows("policies", **lineage)),
            "summary": seconds(lambda: comparison.summary(store, finished)),
            "report": seconds(lambda: render_report(store, finished)),
            "view": seconds(lambda: browsing.problems(store, RUN)),
            "export": seconds(lambda: export(store, RUN, str(folder / "exported"))),
        }


def append(store: Store, batch: int) -> None:
    store.append_missing(
        policies=_rows.policies(batch),
        rollouts=_rows.rollouts(batch),
        critiques=_rows.critiques(batch),
        scores=_rows.scores(batch),
    )


KINDS = {"problems": problems, "rollouts": rollouts}


def sized(kind: str, count: int) -> dict[str, float]:
    """Measure one size in a process of its own: seconds, and its peak memory in bytes."""
    command = [sys.executable, __file__, "--", kind, str(count)]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(made.stdout)
    return found


def main(rollout_power: int = 6, problem_power: int = 5) -> None:
    for kind, first, power in (("problems", 3, problem_power), ("rollouts", 4, rollout_power)):
        sizes = [10**each for each in range(first, power + 1)]
        found = [sized(kind, size) for size in sizes]
        for name in found[0]:
            values = [each[name] for each in found]
            slope = exponent(sizes, values)
            report(f"growth of {name}, {kind}", slope, f"at most {TARGET}", slope <= TARGET,
                   sizes=sizes, values=[round(value, 3) for value in values])  # fmt: skip


if __name__ == "__main__":
    if "--" in sys.argv:
        kind, count = sys.argv[2:]
        with tempfile.TemporaryDirectory() as scratch:
            figures = KINDS[kind](int(count), Path(scratch))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(figures | {"peak MiB": peak}))
    else:
        main(*map(int, sys.argv[1:]))
