"""Copy a run's numbers from the tables to MLflow, at each of its checkpoints."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.run.condition_run import ConditionRun
from tasks.run.interrupts import Stopped
from tasks.run.progress import note


@task(cache_policy=NO_CACHE, task_run_name="track {run.label}")
def track(run: ConditionRun) -> None:
    """Log the updates and scores that MLflow does not have yet."""
    log_run(run)


def log_run(run: ConditionRun) -> None:
    """Log the updates and scores of a condition and seed that MLflow does not have yet.

    A node of a cluster leaves it to the run's own process, which gets the same rows.
    """
    if run.session.outbox is not None:
        return
    updates = run.store.rows("updates", **run.columns)
    scores = run.store.rows("scores", **run.columns)
    with run.session.tracking() as tracking:
        tracking.log_checkpoint(run.experiment, run.condition, run.seed, updates, scores)


def end_run(run: ConditionRun) -> None:
    """Close MLflow's run of a condition and seed, which has nothing more to log."""
    if run.session.outbox is None:
        with run.session.tracking() as tracking:
            tracking.end(run.experiment, run.condition, run.seed)


@contextmanager
def tracked(base: ConditionRun) -> Iterator[None]:
    """Keep the experiment's parent run in MLflow open for the block, and say there how it ended."""
    row = base.store.rows("experiments", experiment_id=base.experiment.experiment_id)
    problems = base.store.rows("problems", experiment_id=base.experiment.experiment_id)
    with base.session.tracking() as tracking:
        libraries = json.loads(row["libraries"][0])
        tracking.start(base.experiment, row["code_version"][0], libraries)
        tracking.log_problems(base.experiment, problems)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        try:
            with base.session.tracking() as tracking:
                tracking.finish(base.experiment, "KILLED" if stopped else "FAILED")
        except Exception as second:
            note(f"WARNING: MLflow was not told how the run ended: {second}")
        raise
