"""Which checkpoints of a run are whole, and which of those that it needs are not."""

from typing import NamedTuple

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

    It needs those of scored policies and the last one, from which it goes on; of a run that was
    stopped early, none after its last good policy. Those of the base are its warmed-up weights.
    Every file of them is read.
    """
    stops = run.store.rows("stops", **run.columns)
    trained = [policy for policy in _stored(run) if policy.kind != "base"]
    if len(stops):
        trained = [each for each in trained if each.round <= stops["good_round"].item()]
    needed = [each for each in trained if each.path is not None or each is trained[-1]]
    found = ((policy, _damage(run, policy)) for policy in needed)
    return [Damaged(policy, reason) for policy, reason in found if reason is not None]


def last_checkpoint(run: ConditionRun, round_: int | None = None) -> StoredPolicy:
    """The last policy of a run whose checkpoint is whole, up to a round; the base where none is.

    Raises:
        StoreError: there is no base policy yet.
    """
    for policy in reversed(_stored(run)):
        if (round_ is None or policy.round <= round_) and _damage(run, policy) is None:
            return policy
    return run.policy(0)


def _stored(run: ConditionRun) -> list[StoredPolicy]:
    rows = run.store.rows("policies", **run.columns)
    return StoredPolicy.from_frame(rows.sort("round"))


def _damage(run: ConditionRun, policy: StoredPolicy) -> ModelError | None:
    require = policies.require_weights if run.condition == BASE else checkpoints.require_whole
    try:
        require(run.checkpoint(policy.round), policy.sha256)
    except ModelError as error:
        return error
    return None
