"""The quickstart made small: what several test files run and read."""

import json
import subprocess
from pathlib import Path

from sdcore.config import load_experiment
from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import sdcore

SMALL = [
    "seeds=[3]", "problems.train=8", "problems.validation=4", "problems.test=6",
    "training.rounds=3", "training.questions_per_round=4", "evaluation.every=2",
    "evaluation.samples=3", "evaluation.validation_samples=2", "evaluation.resamples=200",
    "sampling.batch_size=8", "conditions.grpo.group_size=4",
]  # fmt: skip

ID = load_experiment(QUICKSTART, SMALL).experiment_id


def run(workspace: Path) -> subprocess.CompletedProcess[str]:
    return sdcore("run", QUICKSTART, *SMALL, "--workspace", workspace, "--json")


def printed(result: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, object]]]:
    """The tables that a run printed, without the seconds that it took."""
    parts = json.loads(result.stdout)
    seconds = parts.pop("seconds")
    kinds = ["start-up", "compute", "analysis", "storage", "tracking", "orchestration"]
    assert list(seconds) == kinds and min(seconds.values()) >= 0
    return parts
