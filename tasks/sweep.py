"""Choose the trials of sweeps on validation, and extend their grids."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import comparison, trials
from tasks.growth import grown, store_grown
from tasks.run.condition_run import ConditionRun, base_run
from tasks.run.progress import note


@task(cache_policy=NO_CACHE, task_run_name="choose trials of {base.experiment.name}")
def choose(base: ConditionRun) -> int:
    """Extend the grids whose best value is at an edge; if none is, store which trials won.

    Further trials are stored with the settings of the run, so that everything that reads these
    knows them; `tasks.growth.grown` returns the run with them.

    Returns:
        How many trials are to be run next; 0 where all is decided.
    """
    found = decide(base)
    further = {name: trial for each in found for name, trial in (each.further or {}).items()}
    if further:
        experiment = grown(base).experiment.with_trials(further)  # keeps what others have added
        store_grown(base_run(base.session, experiment))
        with base.session.tracking() as tracking:
            tracking.log_text(experiment, experiment.model_dump_json(indent=2), "experiment.json")
        note(f"the best value is at the edge of its grid: {', '.join(further)} follow")
        return len(further)
    store_choice(base, found)
    for each in found:
        if each.winner is not None and each.winner.score is not None:
            note(f"{each.family}: {each.winner.name}, validation {each.winner.score:.1%}")
    return 0


def decide(base: ConditionRun) -> list[trials.Search]:
    """Return the choice among each condition's trials, from the stored scores on validation."""
    experiment = base.experiment
    scores = comparison.candidates(base.store, experiment.experiment_id)
    return trials.searches(experiment, scores)


def store_choice(base: ConditionRun, found: list[trials.Search]) -> None:
    """Store the trials with their scores and which of them won, where that is new."""
    rows = trials.table(base.experiment, found)
    stored = base.store.rows("trials", experiment_id=base.experiment.experiment_id)
    base.store.replace(trials=rows.join(stored, on=rows.columns, how="anti", nulls_equal=True))


def chosen(base: ConditionRun) -> list[str]:
    """The trials that stand for their conditions, in the order of the conditions."""
    run = base.experiment.experiment_id
    rows = base.store.rows("trials", experiment_id=run, chosen=True)
    return [name for name in base.experiment.conditions if name in rows["trial"]]
