"""Grade a run's stored rollouts again: nothing is sampled, and the old grades are kept."""

from contextlib import ExitStack
from typing import Any

import polars as pl

from sdcore.analysis.regrading import regraded
from sdcore.analysis.scoring import Score, score
from sdcore.store.schema import TABLES
from tasks.compare import log_comparison, store_differences
from tasks.growth import grown
from tasks.run.condition_run import ConditionRun, trained_runs
from tasks.run.lock import run_lock
from tasks.run.progress import note
from tasks.sweep import chosen, decide, store_choice
from tasks.track import log_run

_GRADED = """
    SELECT rollout_id, text, r.answer, reward, correct, grade_details, grade_reason, well_formed,
        p.question, p.reference
    FROM rollouts r JOIN problems p USING (experiment_id, problem_id)
    WHERE r.experiment_id = $experiment_id
"""
_LOGGED = """
    SELECT condition, seed FROM updates WHERE experiment_id = $experiment_id
    UNION SELECT condition, seed FROM scores WHERE experiment_id = $experiment_id ORDER BY ALL
"""


def rescore(base: ConditionRun) -> dict[str, int]:
    """Grade, score and compare again what is stored; log and report it again.

    Rollouts and scores change in one transaction; what was there moves to the schema `superseded`.
    Training is not redone: steps that were taken on old rewards stay, and so do critiques. Trials
    of sweeps are chosen again; a new one is compared once a resumed run has scored it on test.
    Another process that trains a condition and seed is waited for.

    Returns:
        How many rollouts were graded, changed, became correct and became wrong; how many scores
        and comparisons changed.

    Raises:
        Stopped: Ctrl-C was pressed while waiting.
    """
    with run_lock(base, wait=True):
        base = grown(base)
        with ExitStack() as held:
            for each in trained_runs(base):
                held.enter_context(run_lock(each, wait=True))
            counts = _grade_again(base)
        # No longer held: who registers a checkpoint that was pruned restores it under its lock.
        _choose_again(base)
        compared = base.store.rows("comparisons", experiment_id=base.experiment.experiment_id)
        differences = store_differences(base) if len(compared) else 0
        if len(compared):
            log_comparison(base)
        else:
            with base.session.tracking() as tracking:
                tracking.finish(base.experiment)
    return counts | {"comparisons": differences}


def _grade_again(base: ConditionRun) -> dict[str, int]:
    """Grade and score what is stored, and log it: also what a call that failed has left undone.

    MLflow never changes what it has, so runs whose numbers change are forgotten there; first, since
    what is forgotten is logged again by itself.
    """
    run = {"experiment_id": base.experiment.experiment_id}
    graded = base.store.query(_GRADED, run)
    changed = regraded(graded, base.experiment.grader)
    rollouts = base.store.rows("rollouts", rollout_id=changed["rollout_id"].to_list())
    rollouts = rollouts.update(changed, on="rollout_id", include_nulls=True)
    scores, problem_scores = _scores(base, rollouts)
    with base.session.tracking() as tracking:
        for condition, seed in rollouts.select("condition", "seed").unique().iter_rows():
            tracking.forget(base.experiment, condition, seed)
    moved = base.store.replace(rollouts=rollouts, scores=scores, problem_scores=problem_scores)
    for condition, seed in base.store.query(_LOGGED, run).iter_rows():
        log_run(ConditionRun(base.session, base.experiment, condition, seed))
    became = graded.join(changed, on="rollout_id")
    return {
        "rollouts": len(graded),
        "changed": len(changed),
        "now_correct": len(became.filter(~pl.col("correct"), pl.col("correct_right"))),
        "now_wrong": len(became.filter(pl.col("correct"), ~pl.col("correct_right"))),
        "scores": moved["scores"],
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
