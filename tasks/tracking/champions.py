"""Register policies in MLflow: the best of each condition, and the champion."""

from typing import NamedTuple

from sdcore.errors import SdcoreError
from tasks.maintenance.restore import restore
from tasks.run.checkpoints import record_checkpoint
from tasks.run.condition_run import ConditionRun
from tasks.run.lock import run_lock


class Chosen(NamedTuple):
    """The checkpoint of a condition and seed that is best on validation."""

    condition: str
    seed: int
    round: int


def register(base: ConditionRun) -> None:
    """Register each condition's best seed on validation, and name the best of these.

    `champion` is the best of all on validation, unless someone promoted another of this run.
    What trained nothing is not registered.
    """
    seen = set[str]()
    with base.session.tracking() as tracking:
        promoted = tracking.is_promoted(base.experiment)
    for chosen in _ranked(base):
        aliases = [f"champion-{chosen.condition}"]
        if not seen and not promoted:
            aliases.append("champion")
        if chosen.condition not in seen:
            seen.add(chosen.condition)
            _register(base, chosen, aliases)


def promote(run: ConditionRun) -> str:
    """Make the checkpoint of a condition and seed that validation chose the champion.

    Returns:
        The version of the registered model.

    Raises:
        SdcoreError: it has not been scored on validation yet, or trained nothing.
    """
    with run_lock(run):
        restore(run)
    for chosen in _ranked(run.base):
        if (chosen.condition, chosen.seed) == (run.condition, run.seed):
            version = _register(run.base, chosen, ["champion"])
            with run.session.tracking() as tracking:
                tracking.mark_promoted(run.experiment)
            return version
    raise SdcoreError(
        "nothing to promote",
        got=f"{run.label} has no validation score of weights that it trained",
        where=run.experiment.experiment_id,
        fix="`sdcore resume` finishes the run; `training_health` says what trained nothing",
    )


def _ranked(base: ConditionRun) -> list[Chosen]:
    """Return the checkpoint that validation chose for each condition and seed, best first.

    A condition or seed that trained nothing has none.
    """
    rows = base.store.query(
        "SELECT condition, seed, round FROM chosen_checkpoints "
        "WHERE experiment_id = ? AND budget = 'epochs' ORDER BY validation DESC, condition, seed",
        [base.experiment.experiment_id],
    )
    return [Chosen(*row) for row in rows.iter_rows()]


def _register(base: ConditionRun, chosen: Chosen, aliases: list[str]) -> str:
    run = ConditionRun(base.session, base.experiment, chosen.condition, chosen.seed)
    policy = run.policy(chosen.round)
    warmed_up = base.session.models.base_folder(base) if base.experiment.warmup else None
    if policy.path is None:  # it was pruned before scores changed which one is chosen
        with run_lock(run, wait=True):
            restore(run, [policy.round])
            record_checkpoint(run, policy.round)
    folder = base.root / policy.checkpoint
    with base.session.tracking() as tracking:
        return tracking.register(
            base.experiment, policy, folder, aliases, base.prompt_day, warmed_up
        )
