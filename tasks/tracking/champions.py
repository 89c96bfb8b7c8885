"""The policies that MLflow's registry names: each condition's best, the champion, the latest."""

from pathlib import Path
from typing import Any

from sdcore.analysis import comparison
from sdcore.config import Experiment
from sdcore.errors import SdcoreError
from tasks.run import live
from tasks.run.lineage import Lineage, policy_row
from tasks.track import open_tracking

Row = dict[str, Any]


def register(base: Lineage) -> None:
    """Register each condition's best seed on validation, and name the best of these.

    `champion` is the best one on validation, unless somebody promoted another of this run.
    """
    tracking, seen = open_tracking(base.root), set[str]()
    promoted = tracking.is_promoted(base.experiment)
    for row in _ranked(base):
        aliases = [f"champion-{row['condition']}"]
        if not seen and not promoted:
            aliases.append("champion")
        if row["condition"] not in seen:
            seen.add(row["condition"])
            _register(base, row, aliases)


def promote(experiment: Experiment, root: Path, condition: str, seed: int) -> str:
    """Make the checkpoint of a condition and seed that validation chose the champion.

    Returns:
        The version of the registered model.

    Raises:
        SdcoreError: it has not been scored on validation yet.
    """
    base = Lineage(experiment, root, condition, seed).base
    for row in _ranked(base):
        if (row["condition"], row["seed"]) == (condition, seed):
            version = _register(base, row, ["champion"])
            open_tracking(root).mark_promoted(experiment)
            return version
    raise SdcoreError(
        "nothing to promote yet",
        got=f"no validation score of {condition}/{seed}",
        where=experiment.experiment_id,
        fix="`sdcore resume` finishes the run",
    )


def _ranked(base: Lineage) -> list[Row]:
    """The checkpoint that validation chose for each condition and seed, best first."""
    experiment_id = base.experiment.experiment_id
    scores = base.store.rows("scores", experiment_id=experiment_id, split="validation")
    chosen = comparison.chosen_rounds(scores).join(scores, on=["condition", "seed", "round"])
    return chosen.sort("avg_at_k", "condition", "seed", descending=[True, False, False]).to_dicts()


def _register(base: Lineage, row: Row, aliases: list[str]) -> str:
    policy = policy_row(
        Lineage(base.experiment, base.root, row["condition"], row["seed"]), row["round"]
    )
    warmed_up = live.base_folder(base) if base.experiment.warmup else None
    folder = base.root / policy["path"]
    return open_tracking(base.root).register(base.experiment, policy, folder, aliases, warmed_up)
