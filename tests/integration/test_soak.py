"""Twenty runs in one process and one workspace: memory, handles and disk per run stay flat.

It prints a line per run. `make test-soak` runs it; it takes from ten minutes to an hour.
"""

import os

import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.compare_contexts import compare_contexts
from sdcore.config import load_experiment
from tests.helpers.paths import QUICKSTART

pytestmark = pytest.mark.soak
RUNS = 20
SETTINGS = [
    "problems.train=4", "problems.validation=2", "problems.test=2", "training.rounds=1",
    "training.questions_per_round=2", "evaluation.samples=2", "evaluation.validation_samples=1",
    "evaluation.resamples=100", "conditions.grpo.group_size=2",
]  # fmt: skip
# How much more the late runs may take than the early ones, which have filled the caches.
EARLY, LATE = slice(5, 10), slice(15, 20)
GROWTH = {
    "memory": 1.05, "servers": 1.2, "handles": 1.0, "threads": 1.0, "children": 1.0, "disk": 1.2,
}  # fmt: skip


def measured(root):
    """Bytes of this process and of its children, open files, threads, children, bytes of disk."""
    process = psutil.Process()
    children = process.children(recursive=True)
    return {
        "memory": process.memory_info().rss,
        "servers": sum(child.memory_info().rss for child in children),
        "handles": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(children),
        "disk": sum(path.stat().st_size for path in root.rglob("*") if path.is_file()),
    }


def test_what_twenty_runs_leave_behind_is_flat(prefect, tmp_path, capsys):
    rows, before = [], 0
    names = (PREFECT_API_URL, PREFECT_API_AUTH_STRING)
    server = {name: os.environ[name.name] for name in names}
    for seed in range(RUNS):
        settings = load_experiment(QUICKSTART, [*SETTINGS, f"seeds=[{seed}]"])
        with temporary_settings(server):
            compare_contexts(settings, tmp_path)
        row = measured(tmp_path)
        before, row["disk"] = row["disk"], row["disk"] - before  # of this run
        rows.append(row)
        with capsys.disabled():
            print(seed, *(f"{name} {value:,}" for name, value in row.items()), flush=True)
    for name, most in GROWTH.items():
        # The least of five: threads that just end come and go, what leaks stays.
        early, late = (min(row[name] for row in rows[part]) for part in (EARLY, LATE))
        assert late <= most * early, f"{name} grew from {early:,} to {late:,}"
