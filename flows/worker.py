"""The flow of a process that works beside a run: `python -m flows.worker FILE WORKSPACE NUMBER`."""

import sys
from pathlib import Path

from prefect import flow

from flows.compare_contexts import train_condition
from sdcore.config import Experiment
from tasks.run.condition_run import base_run, trained_runs
from tasks.run.lock import done_if_free
from tasks.run.session import Session
from tasks.sweep import grown


@flow(flow_run_name="{experiment.name} worker {number}")
def work(experiment: Experiment, root: Path, number: int) -> int:
    """Train the conditions and seeds of a run that no other process has taken.

    Args:
        experiment: its settings; another process has stored them, and its base, in the workspace.
        root: folder of the workspace.
        number: of the worker; 1 is the process that started it.

    Returns:
        How many it has taken.
    """
    with Session(root) as session:
        base = grown(base_run(session, experiment))
        return sum(done_if_free(run, train_condition) for run in trained_runs(base))


if __name__ == "__main__":
    work(
        Experiment.model_validate_json(Path(sys.argv[1]).read_text("utf-8")),
        Path(sys.argv[2]),
        int(sys.argv[3]),
    )
