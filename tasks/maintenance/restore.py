"""Retrain checkpoints that are missing or damaged, on the rollouts that the tables hold."""

from collections.abc import Collection

from sdcore.errors import StoreError, TrainingError
from sdcore.schedule import Stage
from tasks.distill import train
from tasks.maintenance.rerun import supersede_after
from tasks.prepare import require_same_model
from tasks.run.checkpoints import damaged_checkpoints, last_checkpoint
from tasks.run.condition_run import ConditionRun, StoredPolicy, require_stage
from tasks.run.critiques import open_critic
from tasks.run.progress import note
from tasks.run.rounds import stored_round
from tasks.warmup import warm_up


class _Differs(TrainingError):
    """Retraining does not give the weights of the lost checkpoint."""


def restore(run: ConditionRun, also: Collection[int] = ()) -> None:
    """Retrain the checkpoints of a run that it needs and that are missing or damaged.

    Training goes on from the last whole checkpoint before, on the stored rollouts and contexts:
    nothing is sampled, and no critic is asked. Each round must give the weights whose digest the
    table `policies` has. Where one does not (another machine rounds otherwise, or rows are
    missing), what came after the last whole checkpoint moves to `superseded`, and the run makes it
    again.

    Whoever calls this holds the run's lock.

    Args:
        run: the condition and seed.
        also: rounds of further policies whose weights are needed, which `prune` may have deleted.

    Raises:
        StoreError: a node of a cluster gets other weights; it cannot supersede the run's rows.
    """
    lost = damaged_checkpoints(run, also)
    rounds = [policy.round for policy, _ in lost]
    for policy, reason in lost:
        start = last_checkpoint(run, policy.round - 1)
        note(
            f"{run.label}: the checkpoint after {policy.round} rounds is missing or damaged "
            f"({reason.what}); retraining it on the stored rollouts, from the weights after "
            f"{start.round} rounds"
        )
        try:
            _replay(run, start, policy, rounds)
        except _Differs as error:
            if run.session.outbox is not None:
                raise StoreError(
                    "a checkpoint is lost, and this node retrains it to other weights",
                    got=error,
                    where=f"{run.label} after {policy.round} rounds",
                    fix="`sdcore rerun` with --from distill makes the rounds after the last whole "
                    "checkpoint again",
                ) from error
            supersede_after(run, start.round)
            note(
                f"{run.label}: retrained to different weights; rows derived from the old ones, "
                f"after {start.round} rounds, moved to `superseded` and are made again"
            )
            return
        note(f"{run.label}: retrained to the same weights, sha256 {policy.sha256[:12]}")


def require_replaceable(run: ConditionRun, stage: Stage, round_: int) -> None:
    """See that a stage can be done again, before its rows are superseded.

    Checkpoints that are missing or damaged are restored.

    Raises:
        StoreError: the run has no such stage or round.
        ModelError: the base model is not there, or not the one that the run started with.
        ConfigError: a plugin has changed, or the engine or critic cannot be opened.
    """
    require_stage(run.store, run.experiment, run.condition, run.seed, stage, round_)
    run.experiment.require_same_plugins()
    require_same_model(run.base)
    if run.experiment.warmup:
        warm_up.fn(run.base)
    restore(run, [round_] if stage is Stage.evaluate else ())
    run.session.models.sampler(run)
    if stage is not Stage.evaluate:
        with open_critic(run):
            pass


def _replay(
    run: ConditionRun, start: StoredPolicy, end: StoredPolicy, wanted: Collection[int]
) -> None:
    """Train the rounds between two policies again, and write the wanted checkpoints on the way.

    Raises:
        _Differs: a round gives other weights than the first time, or cannot be trained.
    """
    rounds = range(start.round, end.round)
    with run.session.panel.bar(f"rounds of {run.label} replayed", len(rounds)) as advance:
        for number in rounds:
            round_, after = stored_round(run, number), run.policy(number + 1)
            if len(round_.rollouts) % run.settings.group_size:
                raise _Differs("rollouts of a group are missing", where=round_.label)
            with run.session.models.training(run, number) as trainer:
                train(round_, trainer)
                if trainer.digest() != after.sha256:
                    raise _Differs("the weights differ", where=round_.label)
                if after.round in wanted:
                    trainer.save(run.checkpoint(after.round))
            run.session.interrupts.stop_if_asked()
            advance(1)
