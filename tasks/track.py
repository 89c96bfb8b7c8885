"""Copy a lineage's numbers from the tables to MLflow, at each of its checkpoints."""

import json
from functools import cache
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.system.stopwatch import STOPWATCH
from tasks.run.lineage import Lineage, Reference
from tasks.tracking.client import Tracking


@task(cache_policy=NO_CACHE, task_run_name="track {lineage.label}")
def track(lineage: Lineage) -> Reference:
    """Log the updates and scores that MLflow does not have yet."""
    updates = lineage.store.rows("updates", **lineage.columns)
    scores = lineage.store.rows("scores", **lineage.columns)
    with STOPWATCH.measure("tracking"):
        open_tracking(lineage.root).log_checkpoint(
            lineage.experiment, lineage.condition, lineage.seed, updates, scores
        )
    return Reference("scores", lineage.label, len(scores))


def start_tracking(base: Lineage) -> None:
    """Open the experiment's parent run, with its problems as datasets."""
    row = base.store.rows("experiments", experiment_id=base.experiment.experiment_id)
    problems = base.store.rows("problems", experiment_id=base.experiment.experiment_id)
    with STOPWATCH.measure("tracking"):
        tracking = open_tracking(base.root)
        libraries = json.loads(row["libraries"][0])
        tracking.start(base.experiment, row["code_version"][0], libraries)
        tracking.log_problems(base.experiment, problems)


@cache
def open_tracking(root: Path) -> Tracking:
    """The MLflow store of a workspace folder."""
    return Tracking(root)
