"""Grade a run's stored rollouts again: nothing is sampled, and the old grades are kept."""

from typing import Any

import polars as pl

from sdcore.analysis import comparison
from sdcore.analysis.metrics import score
from sdcore.analysis.regrading import regraded
from sdcore.store.schema import TABLES
from tasks.compare import log_comparison
from tasks.run.condition_run import ConditionRun
from tasks.track import log_run

_GRADED = """
    SELECT rollout_id, text, r.answer, reward, correct, grade_details, grade_reason, well_formed,
        p.question, p.reference
    FROM rollouts r JOIN problems p USING (experiment_id, problem_id)
    WHERE r.experiment_id = $experiment_id
"""


def rescore(base: ConditionRun) -> dict[str, int]:
    """Grade, score and compare again what is stored; log and report again what changed.

    Rollouts and scores change in one transaction; what was there moves to the schema `superseded`.
    Training is not redone: steps that were taken on old rewards stay, and so do critiques.

    Returns:
        How many rollouts were graded, changed, became correct and became wrong; how many scores
        and comparisons changed.
    """
    run = {"experiment_id": base.experiment.experiment_id}
    graded = base.store.query(_GRADED, run)
    changed = regraded(graded, base.experiment.grader)
    rollouts = base.store.rows("rollouts", rollout_id=changed["rollout_id"].to_list())
    rollouts = rollouts.update(changed, on="rollout_id", include_nulls=True)
    moved = base.store.replace(rollouts=rollouts, scores=_scores(base, rollouts))
    differences = _comparisons(base)
    base.store.replace(comparisons=differences)
    _log_again(base, rollouts)
    became = graded.join(changed, on="rollout_id")
    return {
        "rollouts": len(graded),
        "changed": len(changed),
        "now_correct": len(became.filter(~pl.col("correct"), pl.col("correct_right"))),
        "now_wrong": len(became.filter(pl.col("correct"), ~pl.col("correct_right"))),
        "scores": moved["scores"],
        "comparisons": len(differences),
    }


def _scores(base: ConditionRun, rollouts: pl.DataFrame) -> pl.DataFrame:
    """The scores of the policies and splits that the changed rollouts belong to."""
    affected = rollouts.select("policy_id", split="purpose").unique()
    stored = base.store.rows("scores", experiment_id=base.experiment.experiment_id)
    rows = stored.join(affected, on=["policy_id", "split"], how="semi").sort("score_id").to_dicts()
    return TABLES["scores"].frame([row | _numbers(base, row, rollouts) for row in rows])


def _numbers(base: ConditionRun, row: dict[str, Any], rollouts: pl.DataFrame) -> dict[str, Any]:
    run = {name: row[name] for name in base.columns}
    samples = base.store.rows(
        "rollouts", policy_id=row["policy_id"], purpose=row["split"], **run
    ).update(rollouts, on="rollout_id", include_nulls=True)
    return score(samples, k=row["k"], settings=base.experiment.evaluation)


def _comparisons(base: ConditionRun) -> pl.DataFrame:
    """The comparisons that differ from the stored ones, if the run has come to compare at all."""
    experiment_id = base.experiment.experiment_id
    stored = base.store.rows("comparisons", experiment_id=experiment_id)
    if not len(stored):
        return stored
    return comparison.comparisons(base.store, experiment_id).join(
        stored, on=stored.columns, how="anti"
    )


def _log_again(base: ConditionRun, rollouts: pl.DataFrame) -> None:
    """Log the runs whose numbers changed again; MLflow never changes what it has."""
    if not len(rollouts):
        return
    for condition, seed in sorted(rollouts.select("condition", "seed").unique().iter_rows()):
        with base.session.tracking() as tracking:
            tracking.forget(base.experiment, condition, seed)
        log_run(ConditionRun(base.session, base.experiment, condition, seed))
    if len(base.store.rows("comparisons", experiment_id=base.experiment.experiment_id)):
        log_comparison(base)
        return
    with base.session.tracking() as tracking:
        tracking.finish(base.experiment)
