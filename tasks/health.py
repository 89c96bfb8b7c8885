"""Ends a condition and seed early where a sign of a collapse says so, from stored rounds alone."""

import shutil

import polars as pl

from sdcore.analysis.health import last_good, stopping
from sdcore.store.schema import TABLES
from tasks.run.checkpoints import record_checkpoint
from tasks.run.condition_run import ConditionRun
from tasks.run.progress import note

_ROUNDS = """
    FROM round_health WHERE experiment_id = $experiment_id AND condition = $condition
        AND seed = $seed ORDER BY round
"""


def stopped(run: ConditionRun) -> int | None:
    """Return the rounds behind the last good policy if the run ends here; None if it goes on.

    The decision is that of `sdcore.analysis.health.stopping` on the stored rounds, so that a
    resumed run takes the same one. It is stored in `stops` and said in a warning.
    """
    settings = run.experiment.health
    if not settings.stop_when:
        return None
    stored = run.store.rows("stops", **run.columns)
    if len(stored):
        return int(stored["good_round"].item())
    rounds = health_of(run)
    alarm = stopping(rounds, settings)
    if alarm is None:
        return None
    good = last_good(rounds, settings, run.experiment.training.lag)
    row = run.columns | {
        "round": alarm.counts,
        "good_round": good,
        "sign": alarm.sign,
        "reason": alarm.text,
    }
    _keep(run, good)
    run.store.append_missing(stops=TABLES["stops"].frame([row]))
    note(f"WARNING: {run.label} stopped after round {alarm.counts}: {alarm.text}")
    return good


def health_of(run: ConditionRun) -> pl.DataFrame:
    """Return the rows of `round_health` of a run, in order."""
    return run.store.query(_ROUNDS, run.columns)


def _keep(run: ConditionRun, round_: int) -> None:
    """Drop the checkpoints after a policy, and record that its own stays, since it is scored."""
    for number, folder in run.checkpoints().items():
        if number > round_:
            shutil.rmtree(folder)
    if round_:
        record_checkpoint(run, round_)
