"""Redo a stage: the rows that it and what depends on it have written make way, but are kept."""

from sdcore.errors import StoreError
from sdcore.schedule import Stage
from tasks.run.lineage import BASE, Lineage
from tasks.track import open_tracking

_LINEAGE = "experiment_id = $experiment_id AND condition = $condition AND seed = $seed"


def supersede(lineage: Lineage, stage: Stage, round_: int) -> dict[str, int]:
    """Set aside what a stage of a round and all that depends on it have written in a lineage.

    `evaluate` concerns the policy after `round_` rounds, and nothing but the comparison depends on
    it; the other stages change the weights, so every later round and score goes with them. The next
    run of the experiment makes it all anew. MLflow's run of the lineage is deleted there (it can be
    restored) and logged again.

    Returns:
        Rows set aside per table.

    Raises:
        StoreError: the lineage has no such stage or round.
    """
    _require(lineage, stage, round_)
    moved = lineage.store.supersede(_affected(stage), lineage.columns | {"round": round_})
    lineage.store.supersede(
        dict.fromkeys(("comparisons", "seed_differences"), "experiment_id = $experiment_id"),
        {"experiment_id": lineage.experiment.experiment_id},
    )
    open_tracking(lineage.root).forget(lineage.experiment, lineage.condition, lineage.seed)
    return moved


def _require(lineage: Lineage, stage: Stage, round_: int) -> None:
    stored = set(lineage.store.rows("policies", **lineage.columns)["round"])
    evaluates = stage is Stage.evaluate
    if lineage.condition == BASE and not evaluates:
        raise StoreError("the untrained policy has one stage only", got=stage, expected="evaluate")
    expected = stored if evaluates else {each - 1 for each in stored if each}
    if round_ not in expected:
        raise StoreError(
            "no such round to redo",
            got=round_,
            expected=f"{min(expected)} to {max(expected)}" if expected else "a trained lineage",
            where=lineage.label,
        )


def _affected(stage: Stage) -> dict[str, str]:
    """Condition on the rows to set aside, by table; what others are found by goes last."""
    if stage is Stage.evaluate:
        scored = f"{_LINEAGE} AND round = $round"
        return {
            "problem_scores": scored,
            "scores": scored,
            "rollouts": f"{scored} AND purpose IN ('validation', 'test')",
        }
    after, from_it = f"{_LINEAGE} AND round > $round", f"{_LINEAGE} AND round >= $round"
    realigned = after if stage is Stage.distill else from_it
    of_rollouts = f"rollout_id IN (FROM rollouts SELECT rollout_id WHERE {realigned})"
    resampled = f"purpose = 'train' AND {from_it}" if stage is Stage.sample else "false"
    return {
        "critiques": f"{_LINEAGE} AND {of_rollouts}",
        "contexts": f"{_LINEAGE} AND {of_rollouts}",
        "token_signals": from_it,
        "updates": from_it,
        "policies": after,
        "problem_scores": after,
        "scores": after,
        "rollouts": f"({after}) OR ({resampled})",
    }
