"""The policies that MLflow's registry names: each condition's best, the champion, the latest."""

from typing import Any

from sdcore.analysis import comparison
from sdcore.errors import SdcoreError
from tasks.run.condition_run import ConditionRun

Row = dict[str, Any]


def register(base: ConditionRun) -> None:
    """Register each condition's best seed on validation, and name the best of these.

    `champion` is the best one on validation, unless somebody promoted another of this run.
    """
    seen = set[str]()
    with base.session.tracking() as tracking:
        promoted = tracking.is_promoted(base.experiment)
    for row in _ranked(base):
        aliases = [f"champion-{row['condition']}"]
        if not seen and not promoted:
            aliases.append("champion")
        if row["condition"] not in seen:
            seen.add(row["condition"])
            _register(base, row, aliases)


def promote(run: ConditionRun) -> str:
    """Make the checkpoint of a condition and seed that validation chose the champion.

    Returns:
        The version of the registered model.

    Raises:
        SdcoreError: it has not been scored on validation yet.
    """
    for row in _ranked(run.base):
        if (row["condition"], row["seed"]) == (run.condition, run.seed):
            version = _register(run.base, row, ["champion"])
            with run.session.tracking() as tracking:
                tracking.mark_promoted(run.experiment)
            return version
    raise SdcoreError(
        "nothing to promote yet",
        got=f"no validation score of {run.label}",
        where=run.experiment.experiment_id,
        fix="`sdcore resume` finishes the run",
    )


def _ranked(base: ConditionRun) -> list[Row]:
    """The checkpoint that validation chose for each condition and seed, best first."""
    experiment_id = base.experiment.experiment_id
    scores = base.store.rows("scores", experiment_id=experiment_id, split="validation")
    chosen = comparison.chosen_rounds(scores).join(scores, on=["condition", "seed", "round"])
    return chosen.sort("avg_at_k", "condition", "seed", descending=[True, False, False]).to_dicts()


def _register(base: ConditionRun, row: Row, aliases: list[str]) -> str:
    run = ConditionRun(base.session, base.experiment, row["condition"], row["seed"])
    policy = run.policy(row["round"])
    warmed_up = base.session.models.base_folder(base) if base.experiment.warmup else None
    assert policy.path is not None, "scored policies keep their checkpoints"
    folder = base.root / policy.path
    with base.session.tracking() as tracking:
        return tracking.register(
            base.experiment, policy, folder, aliases, base.prompt_day, warmed_up
        )
