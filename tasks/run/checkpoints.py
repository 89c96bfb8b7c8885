"""Which checkpoints of a run are whole, and which of those that it needs are not."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from sdcore.errors import ModelError
from sdcore.models import weight_files
from sdcore.training import checkpoints
from tasks.run.condition_run import BASE, ConditionRun, StoredPolicy


class Damaged(NamedTuple):
    """A checkpoint that cannot be used: the policy of its row, and what is wrong with the files."""

    policy: StoredPolicy
    reason: ModelError


def damaged_checkpoints(run: ConditionRun, also: Collection[int] = ()) -> list[Damaged]:
    """Return the checkpoints that a run needs and that are missing or damaged, in order of rounds.

    Every file of them is read.

    Args:
        run: the condition and seed.
        also: rounds of further policies that are needed, whose checkpoints may have been pruned.
    """
    found = (
        (policy, damage(run.root, policy, resumable=resumable))
        for policy, resumable in needed_policies(run, also).items()
    )
    return [Damaged(policy, reason) for policy, reason in found if reason is not None]


def needed_policies(run: ConditionRun, also: Collection[int] = ()) -> dict[StoredPolicy, bool]:
    """Return the policies of a run whose checkpoints it needs, as `needed` does.

    With `training.lag` the next round is sampled from the last but one.
    """
    stored, stops = _stored(run), run.store.rows("stops", **run.columns)
    training = run.experiment.training
    last = stored[-1].round if stored else 0
    if training.lag and last < training.rounds and not len(stops):
        also = {*also, last - training.lag}
    return needed(stored, stops, also)


def needed(
    stored: Sequence[StoredPolicy], stops: pl.DataFrame, also: Collection[int] = ()
) -> dict[StoredPolicy, bool]:
    """Return the policies of a run whose checkpoints it needs, in order of rounds.

    These are the scored ones and the last one; of a run that was stopped early, none after its last
    good policy. Those of the base are its warmed-up weights. Training goes on from the last one
    (True), unless it was stopped; of the others the weights are enough (False).

    Args:
        stored: all policies of the run, in order of rounds.
        stops: its rows of the table `stops`.
        also: rounds of further policies, as if they were scored.
    """
    trained = [policy for policy in stored if policy.kind != "base"]
    if len(stops):
        trained = [each for each in trained if each.round <= stops["good_round"].item()]
    last = trained[-1:]
    return {
        policy: policy in last and not len(stops)
        for policy in trained
        if policy in last or policy.path is not None or policy.round in also
    }


def damage(root: Path, policy: StoredPolicy, *, resumable: bool) -> ModelError | None:
    """Return what is wrong with a policy's checkpoint in a workspace, if anything is.

    Args:
        root: the workspace.
        policy: the policy.
        resumable: training has to be able to go on from it; else its weights are enough.
    """
    whole = resumable and policy.condition != BASE
    require = checkpoints.require_whole if whole else weight_files.require
    try:
        require(root / policy.checkpoint, policy.sha256)
    except ModelError as error:
        return error
    return None


def record_checkpoint(run: ConditionRun, round_: int) -> None:
    """Record that the checkpoint after so many rounds stays, as that of a scored policy does."""
    policy = run.policy(round_)
    path = pl.lit(policy.checkpoint.as_posix())
    run.store.replace(policies=StoredPolicy.to_frame([policy]).with_columns(path=path))


def last_checkpoint(run: ConditionRun, round_: int | None = None) -> StoredPolicy:
    """The last policy of a run, up to a round, that training can go on from; the base if none.

    Raises:
        StoreError: there is no base policy yet.
    """
    for policy in reversed(_stored(run)):
        if (round_ is None or policy.round <= round_) and (
            damage(run.root, policy, resumable=True) is None
        ):
            return policy
    return run.policy(0)


def _stored(run: ConditionRun) -> list[StoredPolicy]:
    rows = run.store.rows("policies", **run.columns)
    return StoredPolicy.from_frame(rows.sort("round"))
