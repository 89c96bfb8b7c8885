"""A run grows: by conditions and seeds that a file adds, and by further trials of its sweeps.

The settings that the table `experiments` has of a run are those of all that it has; those of a
file may be fewer. A run never shrinks.
"""

import polars as pl

from sdcore.config import Experiment
from sdcore.errors import ConfigError
from tasks.run.condition_run import ConditionRun, base_run


def grown(base: ConditionRun) -> ConditionRun:
    """Return the run with the conditions and seeds that its stored settings have beyond its own.

    Raises:
        ConfigError: a condition was added to the run with other settings than this one has.
    """
    stored = stored_settings(base)
    joined = base.experiment.part_of(stored)
    if joined is None:
        raise ConfigError(
            "a condition was added to this run, and the file has it with other settings",
            got=", ".join(base.experiment.conditions),
            expected=f"{', '.join(stored.added.conditions)} as the run has them",
            where=stored.experiment_id,
            fix="rename the condition in the file",
        )
    return base_run(base.session, joined)


def store_grown(run: ConditionRun) -> None:
    """Store the settings of a run that has grown, so that everything that reads them knows it."""
    rows = run.store.rows("experiments", experiment_id=run.experiment.experiment_id)
    config = run.experiment.model_dump_json()
    run.store.replace(experiments=rows.with_columns(config=pl.lit(config)))


def stored_settings(base: ConditionRun) -> Experiment:
    """Return the settings that the table `experiments` has of the run."""
    rows = base.store.rows("experiments", experiment_id=base.experiment.experiment_id)
    return Experiment.model_validate_json(rows["config"][0])
