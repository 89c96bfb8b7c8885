"""Register policies in MLflow: the best of each condition, and the champion."""

from pathlib import Path
from typing import NamedTuple

from sdcore.config import Experiment
from sdcore.errors import SdcoreError
from tasks.run import live
from tasks.run.lineage import Lineage, policy_row
from tasks.track import open_tracking


class Chosen(NamedTuple):
    """The checkpoint of a condition and seed that is best on validation."""

    condition: str
    seed: int
    round: int


def register(base: Lineage) -> None:
    """Register each condition's best seed on validation, and name the best of these.

    `champion` is the best of all on validation, unless someone promoted another of this run.
    What trained nothing is not registered.
    """
    tracking, seen = open_tracking(base.root), set[str]()
    promoted = tracking.is_promoted(base.experiment)
    for chosen in _ranked(base):
        aliases = [f"champion-{chosen.condition}"]
        if not seen and not promoted:
            aliases.append("champion")
        if chosen.condition not in seen:
            seen.add(chosen.condition)
            _register(base, chosen, aliases)


def promote(experiment: Experiment, root: Path, condition: str, seed: int) -> str:
    """Make the checkpoint of a condition and seed that validation chose the champion.

    Returns:
        The version of the registered model.

    Raises:
        SdcoreError: it has not been scored on validation yet, or trained nothing.
    """
    base = Lineage(experiment, root, condition, seed).base
    for chosen in _ranked(base):
        if (chosen.condition, chosen.seed) == (condition, seed):
            version = _register(base, chosen, ["champion"])
            open_tracking(root).mark_promoted(experiment)
            return version
    raise SdcoreError(
        "nothing to promote",
        got=f"{condition}/{seed} has no validation score of weights that it trained",
        where=experiment.experiment_id,
        fix="`sdcore resume` finishes the run; `training_health` says what trained nothing",
    )


def _ranked(base: Lineage) -> list[Chosen]:
    """Return the checkpoint that validation chose for each condition and seed, best first.

    A condition or seed that trained nothing has none.
    """
    rows = base.store.query(
        "SELECT condition, seed, round FROM chosen_checkpoints "
        "WHERE experiment_id = ? AND budget = 'epochs' ORDER BY validation DESC, condition, seed",
        [base.experiment.experiment_id],
    )
    return [Chosen(*row) for row in rows.iter_rows()]


def _register(base: Lineage, chosen: Chosen, aliases: list[str]) -> str:
    lineage = Lineage(base.experiment, base.root, chosen.condition, chosen.seed)
    policy = policy_row(lineage, chosen.round)
    warmed_up = live.base_folder(base) if base.experiment.warmup else None
    folder = base.root / policy["path"]
    return open_tracking(base.root).register(base.experiment, policy, folder, aliases, warmed_up)
