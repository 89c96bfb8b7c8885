"""Redo a stage: the rows that it and what depends on it have written are superseded, but kept."""

from sdcore.schedule import Stage
from tasks.run.checkpoints import last_checkpoint
from tasks.run.condition_run import ConditionRun
from tasks.run.progress import note

_RUN = "experiment_id = $experiment_id AND condition = $condition AND seed = $seed"


def supersede(run: ConditionRun, stage: Stage, round_: int) -> dict[str, int]:
    """Supersede what a stage of a round and all that depends on it have written in a run.

    `evaluate` concerns the policy after `round_` rounds, and nothing but the comparison depends on
    it; the other stages change the weights, so every later round and score goes with them. Where
    no checkpoint leads to the round, the rounds since the last one before it are redone too. The
    next run of the experiment makes all of it again. MLflow's run of the condition is deleted
    there (it can be restored) and logged again. See first that all of it can be made again:
    `restore.require_replaceable`.

    Returns:
        Rows moved to `superseded`, per table.
    """
    if stage is not Stage.evaluate:
        start = last_checkpoint(run, round_).round
        if start < round_:
            note(
                f"{run.label}: the last checkpoint before round {round_} is after {start} rounds; "
                f"rounds {start} to {round_ - 1} are redone too"
            )
            return supersede_after(run, start)
    return _supersede(run, stage, round_)


def supersede_after(run: ConditionRun, round_: int) -> dict[str, int]:
    """Supersede what lies after the checkpoint after `round_` rounds.

    The rollouts and critiques of the next round are kept: the checkpoint's policy made them.

    Returns:
        Rows moved to `superseded`, per table.
    """
    return _supersede(run, Stage.distill, round_)


def _supersede(run: ConditionRun, stage: Stage, round_: int) -> dict[str, int]:
    with run.session.tracking() as tracking:  # first: what is forgotten is logged again by itself
        tracking.forget(run.experiment, run.condition, run.seed)
    moved = run.store.supersede(_affected(stage), run.columns | {"round": round_})
    run.store.supersede(
        dict.fromkeys(
            ("trials", "comparisons", "seed_differences"), "experiment_id = $experiment_id"
        ),
        {"experiment_id": run.experiment.experiment_id},
    )
    return moved


def _affected(stage: Stage) -> dict[str, str]:
    """Condition on the rows to supersede, by table; what others are found by goes last."""
    if stage is Stage.evaluate:
        scored = f"{_RUN} AND round = $round"
        rollouts = f"{scored} AND purpose IN ('validation', 'test')"
        return {"problem_scores": scored, "scores": scored, "rollouts": rollouts}
    after, from_it = f"{_RUN} AND round > $round", f"{_RUN} AND round >= $round"
    realigned = after if stage is Stage.distill else from_it
    of_rollouts = f"rollout_id IN (FROM rollouts SELECT rollout_id WHERE {realigned})"
    resampled = f"purpose = 'train' AND {from_it}" if stage is Stage.sample else "false"
    return {
        "critiques": f"{_RUN} AND {of_rollouts}",
        "contexts": f"{_RUN} AND {of_rollouts}",
        "token_signals": from_it,
        "updates": from_it,
        "stops": from_it,
        "policies": after,
        "problem_scores": after,
        "scores": after,
        "rollouts": f"({after}) OR ({resampled})",
    }
