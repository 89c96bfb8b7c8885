"""Mutation testing: small faults are planted in the code that results rest on; tests must fail.

Usage: python -m tests.mutants SAMPLE [GROUP …], in the environment of the tools; see Makefile. Of
each group SAMPLE mutants are drawn, with a fixed seed; each runs the group's tests that reach it.
mutmut plants them in a copy of the project. It does not change decorated functions, class bodies
and constants; texts that only people read (the lines of errors) are left out here.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

ROOT = Path(__file__).parents[1]
SEED = 0
SETTINGS = {
    "source_paths": ["sdcore", "tasks"],
    "also_copy": ["flows", "deployments", "README.md"],
    "do_not_mutate_patterns": [r'^\s*f?"[^"]* [^"]*",?$', r"^\s*(expected|fix)="],
    "pytest_add_cli_args": ["-p", "no:cacheprovider", "-m", "not night and not kills and not slow"],
    "process_isolation": "forkserver",  # a fork of a process that has used Polars hangs
    "use_git_change_detection": False,
    "track_dependencies": False,
}


@dataclass(frozen=True)
class Group:
    """Modules, and the tests that answer for them; both relative to the project."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = {
    "losses": Group(
        ("sdcore/training/losses.py", "sdcore/training/divergences.py",
         "sdcore/training/projection.py"),
        ("tests/unit/training/test_losses.py", "tests/unit/training/test_divergences.py",
         "tests/unit/training/test_projection.py"),
    ),
    "metrics": Group(
        ("sdcore/analysis/metrics.py", "sdcore/analysis/intervals.py"),
        ("tests/unit/analysis/test_metrics.py", "tests/unit/analysis/test_intervals.py"),
    ),
    "validation": Group(
        ("sdcore/critics/validation.py",),
        ("tests/unit/critics/test_validation.py", "tests/unit/critics/test_derivations.py"),
    ),
    "grading": Group(("sdcore/grading/*.py",), ("tests/unit/grading",)),
    "store": Group(
        ("sdcore/store/check.py", "sdcore/store/database.py", "sdcore/store/export.py",
         "sdcore/store/reading.py"),
        ("tests/unit/store",),
    ),
    "comparison": Group(
        ("sdcore/analysis/comparison.py",), ("tests/unit/analysis/test_comparison.py",)
    ),
    "resume": Group(
        ("tasks/run/checkpoints.py", "tasks/run/condition_run.py", "tasks/run/rounds.py"),
        ("tests/integration/test_rounds.py", "tests/integration/test_restore.py"),
    ),
}  # fmt: skip


def main(sample: int, *names: str) -> None:
    """Test the groups, print what survived and a line for each group."""
    for name in names or GROUPS:
        folder = ROOT / "build" / "mutants" / name
        copy_project(folder, GROUPS[name])
        os.chdir(folder)
        drawn = draw(sample)
        command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *drawn]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        report(name, drawn)


def copy_project(folder: Path, group: Group) -> None:
    """Copy the project's files and name in its settings what mutmut is to change and run."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    settings = SETTINGS | {
        "only_mutate": group.modules,
        "pytest_add_cli_args_test_selection": group.tests,
    }
    lines = (f"{name} = {json.dumps(value)}" for name, value in settings.items())  # TOML too
    with (folder / "pyproject.toml").open("a") as file:
        file.write("\n".join(["\n[tool.mutmut]", *lines, ""]))


def draw(sample: int) -> list[str]:
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
    return random.Random(SEED).sample(names, min(sample, len(names)))


def report(group: str, drawn: list[str]) -> None:
    """Print the mutants that no test failed on, and the share killed, with its 95 % interval.

    One that is ended for its time ("timeout") is not counted as killed: look whether it is endless
    or the machine was busy.
    """
    from mutmut import __main__ as mutmut
    from mutmut.stats import status_by_exit_code

    tested, _ = mutmut.collect_source_file_mutation_data(mutant_names=drawn)
    status = {
        # mutmut calls 255 a timeout too: it is what those get whose server died before they ran
        name: "lost" if code == 255 else status_by_exit_code[code]
        for _, name, code in tested
    }
    for name in drawn:
        if status[name] != "killed":
            print(f"{status[name]}: {mutmut.get_diff_for_mutant(name)}")
    counts = Counter(status.values())
    killed = binomtest(counts.pop("killed", 0), len(drawn))
    low, high = killed.proportion_ci(method="wilson")
    others = "".join(f", {count} {name}" for name, count in sorted(counts.items()))
    print(
        f"{group}: {killed.k} of {killed.n} killed{others}: "
        f"{killed.statistic:.0%} [{low:.0%}, {high:.0%}]"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
