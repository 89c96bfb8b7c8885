"""Grade a run's stored rollouts again: nothing is sampled, and the old grades are kept."""

from typing import Any

import polars as pl

from sdcore.analysis.regrading import regraded
from sdcore.analysis.scoring import Score, score
from sdcore.store.schema import TABLES
from tasks.compare import log_comparison, store_differences
from tasks.run.condition_run import ConditionRun
from tasks.run.progress import note
from tasks.sweep import chosen, decide, store_choice
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
    Training is not redone: steps that were taken on old rewards stay, and so do critiques. Trials
    of sweeps are chosen again; a new one is compared once a resumed run has scored it on test.

    Returns:
        How many rollouts were graded, changed, became correct and became wrong; how many scores
        and comparisons changed.
    """
    run = {"experiment_id": base.experiment.experiment_id}
    graded = base.store.query(_GRADED, run)
    changed = regraded(graded, base.experiment.grader)
    rollouts = base.store.rows("rollouts", rollout_id=changed["rollout_id"].to_list())
    rollouts = rollouts.update(changed, on="rollout_id", include_nulls=True)
    scores, problem_scores = _scores(base, rollouts)
    moved = base.store.replace(rollouts=rollouts, scores=scores, problem_scores=problem_scores)
    _choose_again(base)
    compared = len(base.store.rows("comparisons", **run))
    differences = store_differences(base) if compared else 0
    _log_again(base, rollouts)
    became = graded.join(changed, on="rollout_id")
    return {
        "rollouts": len(graded),
        "changed": len(changed),
        "now_correct": len(became.filter(~pl.col("correct"), pl.col("correct_right"))),
        "now_wrong": len(became.filter(pl.col("correct"), ~pl.col("correct_right"))),
        "scores": moved["scores"],
        "comparisons": differences,
    }


def _choose_again(base: ConditionRun) -> None:
    """Choose the trials of sweeps by the new scores; nothing before the run has chosen any."""
    before = chosen(base)
    if not before:
        return
    store_choice(base, decide(base))
    if new := [trial for trial in chosen(base) if trial not in before]:
        note(
            f"WARNING: other trials are best on validation now: {', '.join(new)}. "
            f"`sdcore resume {base.experiment.experiment_id}` scores them on test"
        )


def _scores(base: ConditionRun, rollouts: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the scores, and problem scores, of the policies whose rollouts changed."""
    affected = rollouts.select("policy_id", split="purpose").unique()
    stored = base.store.rows("scores", experiment_id=base.experiment.experiment_id)
    rows = stored.join(affected, on=["policy_id", "split"], how="semi").sort("score_id").to_dicts()
    scored = [(row, _score(base, row, rollouts)) for row in rows]
    parts = [found.problem_rows(row) for row, found in scored]
    return (
        TABLES["scores"].frame([row | found.columns for row, found in scored]),
        pl.concat(parts) if parts else TABLES["problem_scores"].frame([]),
    )


def _score(base: ConditionRun, row: dict[str, Any], rollouts: pl.DataFrame) -> Score:
    run = {name: row[name] for name in base.columns}
    samples = base.store.rows(
        "rollouts", policy_id=row["policy_id"], purpose=row["split"], **run
    ).update(rollouts, on="rollout_id", include_nulls=True)
    return score(samples, k=row["k"], settings=base.experiment.evaluation)


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
