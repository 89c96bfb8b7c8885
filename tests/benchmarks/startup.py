"""Time until a command that reads results prints its help, against importing DuckDB and Polars.

Without those two libraries no result can be read, so their import is the least that a start takes.
Usage: startup.py [repetitions]
"""

import statistics
import subprocess
import sys
from pathlib import Path

from _measure import alternating, ratio, report

SDCORE = Path(sys.executable).with_name("sdcore")
COMMANDS = ("report", "query", "list", "view")
RATIO, SECONDS = 3.0, 1.0  # the imports take a third of a second on a quiet machine


def main(repetitions: int = 7) -> None:
    imports = [sys.executable, "-c", "import duckdb, polars"]
    pairs = {name: alternating(started(imports), started([SDCORE, name, "--help"]), repetitions)
             for name in COMMANDS}  # fmt: skip
    slowest = max(statistics.median(ours for _, ours in each) for each in pairs.values())
    headline = max(map(ratio, pairs.values()))
    report(
        "startup",
        headline,
        f"at most {RATIO:g} times the import of DuckDB and Polars; {SECONDS:g} s",
        headline <= RATIO and slowest <= SECONDS,
        slowest_seconds=round(slowest, 3),
        seconds={
            name: {"imports": [round(rival, 3) for rival, _ in each],
                   "command": [round(ours, 3) for _, ours in each]}
            for name, each in pairs.items()
        },
    )  # fmt: skip


def started(command: list[object]):
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
