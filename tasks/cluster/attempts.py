"""Attempts, as the run's own process sees them: what a node is given, and what comes back."""

import time

import polars as pl

from sdcore.store import parts
from sdcore.store.parts import Folder, Part
from sdcore.store.schema import TABLES
from tasks.cluster.checkpoints import pull, push
from tasks.run.checkpoints import needed_policies
from tasks.run.condition_run import ConditionRun
from tasks.track import log_run

GIVEN = "given.parquet"
_OWN = (
    "policies", "rollouts", "critiques", "critic_answers", "contexts", "updates", "stops", "scores",
)  # fmt: skip
_PAID = "SELECT * FROM critiques WHERE experiment_id = ? AND raw IS NOT NULL"


def attempts(run: ConditionRun, root: Folder) -> Folder:
    """Return the folder of the attempts at a run."""
    return root / f"parts/{run.experiment.experiment_id}/{run.condition}/seed-{run.seed}"


def open_attempt(run: ConditionRun, root: Folder) -> Folder:
    """Merge what the last attempt at a run has left, and open another one.

    Whoever calls this holds the run's lock.

    Returns:
        The new attempt, with all that a node needs to go on after the last stored round.
    """
    place = attempts(run, root)
    for name in place.names()[-1:]:
        merge(run, place / name)
    place.remove()
    for policy in [*needed_policies(run.base), *needed_policies(run)]:
        push(run.root, policy, root)
    attempt = place / f"{time.time_ns()}"
    attempt.make()
    given = parts.packed(Part(given_rows(run)))
    attempt.files.pipe_file((attempt / GIVEN).path, given)
    return attempt


def merge(run: ConditionRun, attempt: Folder) -> list[Part]:
    """Store the parts that an attempt has sent since the last call, and remove them there.

    Returns:
        The parts, in order.

    Raises:
        DataError: one has rows of another run.
    """
    merged = []
    for name in parts.names(attempt):
        part = parts.read(attempt, name)
        if part is None:
            break
        parts.merge(run.store, part, run.columns, f"{attempt.path}/{name}")
        attempt.files.rm_file(f"{attempt.path}/{name}")
        merged.append(part)
    if any("scores" in part.frames for part in merged):
        log_run(run)
    return merged


def close(run: ConditionRun, root: Folder) -> None:
    """Bring the checkpoints of a trained run into the workspace, and remove what travelled."""
    for policy, resumable in needed_policies(run).items():
        pull(run.root, policy, root, resumable=resumable)
    attempts(run, root).remove()
    (root / run.folder.relative_to(run.root).as_posix()).remove()


def given_rows(run: ConditionRun) -> dict[str, pl.DataFrame]:
    """Return the rows that training goes by: the base's, the run's own, and paid critiques."""
    store, experiment = run.store, run.experiment.experiment_id
    base = run.base.columns
    probes = store.rows("rollouts", purpose="validation", round=0, **base)
    more = {
        "policies": store.rows("policies", **base),
        "rollouts": probes,
        "critiques": store.query(_PAID, [experiment]),
        "critic_answers": store.rows("critic_answers", experiment_id=experiment),
    }
    own = {name: store.rows(name, **run.columns) for name in _OWN}
    frames = {
        name: pl.concat([own[name], rows]).unique(TABLES[name].key, maintain_order=True)
        for name, rows in more.items()
    }
    whole = ("experiments", "problems", "difficulties")
    return own | frames | {name: store.rows(name, experiment_id=experiment) for name in whole}
