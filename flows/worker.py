"""Flows of processes that train for a run: beside it, or on a node of its cluster.

Beside it: `python -m flows.worker FILE WORKSPACE NUMBER`. On a node, see `flows.node`.
"""

import sys
from pathlib import Path

from prefect import flow

from flows.compare_contexts import train_condition
from sdcore.config import Experiment
from sdcore.store.parts import Folder, open_folder
from tasks.cluster.checkpoints import pull, push
from tasks.cluster.outbox import Outbox, receive
from tasks.growth import grown
from tasks.run.checkpoints import needed_policies
from tasks.run.condition_run import ConditionRun, base_run, trained_runs
from tasks.run.lock import done_if_free
from tasks.run.session import DATABASE, Session


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


@flow(flow_run_name="{experiment.name} {condition}/seed-{seed}")
def train_attempt(
    experiment: Experiment, condition: str, seed: int, attempt: str, workspace: Path
) -> None:
    """Train a condition and seed on a node of the experiment's cluster, from where it stands.

    Args:
        experiment: its settings, with the trials that are known by now.
        condition: the condition.
        seed: the seed.
        attempt: folder, in the file system of the cluster's root, that holds the rows to begin
            with and takes those that are made.
        workspace: a new folder of this node.
    """
    assert experiment.cluster is not None, "only a cluster has nodes"
    root = open_folder(experiment.cluster.root)
    place = Folder(root.files, attempt)
    receive(place, workspace / DATABASE)
    with Session(workspace, Outbox(workspace, root, place)) as session:
        run = ConditionRun(session, experiment, condition, seed)
        for policy, resumable in (needed_policies(run.base) | needed_policies(run)).items():
            pull(workspace, policy, root, resumable=resumable)
        train_condition(run)
        for policy in needed_policies(run):
            push(workspace, policy, root)  # those that were retrained
        session.send()


if __name__ == "__main__":
    work(
        Experiment.model_validate_json(Path(sys.argv[1]).read_text("utf-8")),
        Path(sys.argv[2]),
        int(sys.argv[3]),
    )
