"""Which checkpoints of a run are whole, and which of those that it needs are not."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from sdcore.errors import ModelError
from sdcore.models import policies
from sdcore.training import checkpoints
from tasks.run.condition_run import BASE, ConditionRun, StoredPolicy


class Damaged(NamedTuple):
    """A checkpoint that cannot be used: the policy of its row, and what is wrong with the files."""

    policy: StoredPolicy
    reason: ModelError


def damaged_checkpoints(run: ConditionRun) -> list[Damaged]:
    """Return the checkpoints that a run needs and that are missing or damaged, in order of rounds.

    Every file of them is read.
    """
    found = ((policy, damage(run.root, policy)) for policy in needed_policies(run))
    return [Damaged(policy, reason) for policy, reason in found if reason is not None]


def needed_policies(run: ConditionRun) -> list[StoredPolicy]:
    """Return the policies of a run whose checkpoints it needs, in order of rounds."""
    return needed(_stored(run), run.store.rows("stops", **run.columns))


def needed(stored: Sequence[StoredPolicy], stops: pl.DataFrame) -> list[StoredPolicy]:
    """Return the policies of a run whose checkpoints it needs, in order of rounds.

    These are the scored ones and the last one, from which it goes on; of a run that was stopped
    early, none after its last good policy. Those of the base are its warmed-up weights.

    Args:
        stored: all policies of the run, in order of rounds.
        stops: its rows of the table `stops`.
    """
    trained = [policy for policy in stored if policy.kind != "base"]
    if len(stops):
        trained = [each for each in trained if each.round <= stops["good_round"].item()]
    return [each for each in trained if each.path is not None or each is trained[-1]]


def damage(root: Path, policy: StoredPolicy) -> ModelError | None:
    """Return what is wrong with a policy's checkpoint in a workspace, if anything is."""
    try:
        require_policy(policy, root / policy.checkpoint)
    except ModelError as error:
        return error
    return None


def require_policy(policy: StoredPolicy, folder: Path) -> None:
    """Refuse a folder that is not the policy's checkpoint, as it was written.

    Raises:
        ModelError: a file is missing or differs from its digest, or the weights are others.
    """
    base = policy.condition == BASE
    require = policies.require_weights if base else checkpoints.require_whole
    require(folder, policy.sha256)


def last_checkpoint(run: ConditionRun, round_: int | None = None) -> StoredPolicy:
    """The last policy of a run whose checkpoint is whole, up to a round; the base where none is.

    Raises:
        StoreError: there is no base policy yet.
    """
    for policy in reversed(_stored(run)):
        if (round_ is None or policy.round <= round_) and damage(run.root, policy) is None:
            return policy
    return run.policy(0)


def _stored(run: ConditionRun) -> list[StoredPolicy]:
    rows = run.store.rows("policies", **run.columns)
    return StoredPolicy.from_frame(rows.sort("round"))
