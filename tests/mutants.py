"""Mutation testing: small faults are planted in the code that results rest on; tests must fail.

Usage: python -m tests.mutants SAMPLE DRAW [GROUP …], in the environment of the tools; see Makefile.
Of each group SAMPLE mutants are drawn; another DRAW has others: tests that were written for the
survivors of one draw are measured on the next. Each mutant runs the tests of its module until one
fails, whether they reach it in their own process or in one that they start (as grading does).

mutmut plants them in a copy of the project. It does not change decorated functions, class bodies
and constants; texts that only people read (the lines of errors) are left out here.

The process that imports the tests forks one for each mutant. It runs none itself: a fork of a
process that has used Polars hangs.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from scipy.stats import binomtest

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "source_paths": ["sdcore", "tasks"],
    "also_copy": ["flows", "deployments", "README.md"],
    "do_not_mutate_patterns": [r'^\s*f?"[^"]* [^"]*",?$', r"^\s*(expected|fix)="],
}
PYTEST = (
    "--exitfirst", "--quiet", "-p", "no:cacheprovider",
    "-m", "not night and not kills and not slow",
)  # fmt: skip
MUTANT = "MUTANT_UNDER_TEST"  # the variable that chooses the planted fault
OUTCOMES = {0: "survived", 1: "killed", None: "ran out of time"}


# The tests that answer for modules; both relative to the project.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "losses": {
        "sdcore/training/losses.py": ("tests/unit/training/test_losses.py",),
        "sdcore/training/divergences.py": (
            "tests/unit/training/test_divergences.py", "tests/unit/training/test_losses.py",
        ),
        "sdcore/training/projection.py": (
            "tests/unit/training/test_projection.py", "tests/unit/training/test_losses.py",
        ),
    },
    "metrics": {
        "sdcore/analysis/metrics.py": ("tests/unit/analysis/test_metrics.py",),
        "sdcore/analysis/intervals.py": ("tests/unit/analysis/test_intervals.py",),
    },
    "validation": {
        "sdcore/critics/validation.py": (
            "tests/unit/critics/test_validation.py", "tests/unit/critics/test_derivations.py",
            "tests/unit/critics/test_llm.py",
        ),
    },
    "grading": {"sdcore/grading/*.py": ("tests/unit/grading",)},
    "store": {
        "sdcore/store/check.py": ("tests/unit/store/test_check.py",),
        "sdcore/store/database.py": ("tests/unit/store/test_database.py",),
        "sdcore/store/export.py": ("tests/unit/store/test_export.py",),
        "sdcore/store/reading.py": ("tests/unit/store/test_reading.py",),
    },
    "comparison": {
        "sdcore/analysis/comparison.py": ("tests/unit/analysis/test_comparison.py",),
    },
    "resume": {
        "tasks/run/checkpoints.py": (
            "tests/unit/run/test_checkpoints.py", "tests/integration/test_restore.py",
        ),
        "tasks/run/condition_run.py": ("tests/unit/run/test_condition_run.py",),
        "tasks/run/rounds.py": ("tests/integration/test_rounds.py",),
    },
}  # fmt: skip


def main(sample: int, drawn: int, *names: str) -> None:
    """Test the groups, print what survived and a line for each group."""
    for name in names or GROUPS:
        folder = ROOT / "build" / "mutants" / name
        copy_project(folder, GROUPS[name])
        os.chdir(folder)
        mutants = draw(sample, drawn)
        os.chdir("mutants")
        subprocess.run([sys.executable, "-m", "tests.mutants", name, *mutants], check=True)
        os.chdir(folder)
        report(name, json.loads(Path("outcomes.json").read_text("utf-8")))


def test(group: str, *mutants: str) -> None:
    """Run the tests of a group on each mutant; the copy with the mutants is the working folder."""
    modules = GROUPS[group]
    pytest.main([*PYTEST, "--collect-only", *chain.from_iterable(modules.values())])
    bounds: dict[tuple[str, ...], float] = {}
    outcomes: dict[str, str] = {}
    for mutant in mutants:
        path = f"{mutant.rpartition('.')[0].replace('.', '/')}.py"
        tests = next(each for module, each in modules.items() if fnmatch(path, module))
        if tests not in bounds:
            started = time.monotonic()
            if outcome("", tests, None) != "survived":
                raise SystemExit(f"{group}: the tests of {path} fail without a mutant")
            bounds[tests] = 60 + 5 * (time.monotonic() - started)
        outcomes[mutant] = outcome(mutant, tests, bounds[tests])
        Path("../outcomes.json").write_text(json.dumps(outcomes), "utf-8")


def copy_project(folder: Path, modules: Iterable[str]) -> None:
    """Copy the project's files and name in its settings what mutmut is to change."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    settings = SETTINGS | {"only_mutate": list(modules)}
    lines = (f"{name} = {json.dumps(value)}" for name, value in settings.items())  # TOML too
    with (folder / "pyproject.toml").open("a") as file:
        file.write("\n".join(["\n[tool.mutmut]", *lines, ""]))


def draw(sample: int, drawn: int) -> list[str]:
    """Plant the mutants in the copy and return the names of those that are tested."""
    from mutmut import __main__ as mutmut  # reads the settings of the folder
    from mutmut.configuration import reset_config

    reset_config()
    Path("mutants").mkdir()
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.create_mutants(1)
    planted, _ = mutmut.collect_source_file_mutation_data(mutant_names=())
    names = sorted(name for _, name, _ in planted)
    print(f"{len(names)} mutants", flush=True)
    return random.Random(drawn).sample(names, min(sample, len(names)))


def outcome(mutant: str, tests: Sequence[str], seconds: float | None) -> str:
    """Run tests on a mutant and return what became of it: a value of OUTCOMES, or another end.

    Processes that it has started and left behind are ended.
    """
    process = get_context("fork").Process(target=run_tests, args=(mutant, tests))
    process.start()
    process.join(seconds)
    code = process.exitcode
    process.kill()
    while left := [each for each in psutil.process_iter() if runs(each, mutant)]:
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.join()
    return OUTCOMES.get(code, f"pytest ended with {code}")


def run_tests(mutant: str, tests: Sequence[str]) -> None:
    """End this process with pytest's exit code."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(1, 2)
    os.environ[MUTANT] = mutant
    os._exit(pytest.main([*PYTEST, *tests]))


def runs(process: psutil.Process, mutant: str) -> bool:
    """Return whether a process is a program that a test of a mutant has started."""
    with suppress(psutil.Error):
        return process.environ().get(MUTANT) == mutant
    return False


def report(group: str, outcomes: dict[str, str]) -> None:
    """Print the mutants that no test failed on, and the share killed, with its 95 % interval.

    One that runs out of time is not counted as killed: look whether it is endless or the
    machine was busy.
    """
    from mutmut import __main__ as mutmut

    for name, became in outcomes.items():
        if became != "killed":
            print(f"{became}: {mutmut.get_diff_for_mutant(name)}")
    counts = Counter(outcomes.values())
    killed = binomtest(counts.pop("killed", 0), len(outcomes))
    low, high = killed.proportion_ci(method="wilson")
    others = "".join(f", {count} {became}" for became, count in sorted(counts.items()))
    print(
        f"{group}: {killed.k} of {killed.n} killed by a test{others}: "
        f"{killed.statistic:.0%} [{low:.0%}, {high:.0%}]",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1] in GROUPS:
        test(*sys.argv[1:])
    else:
        main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
