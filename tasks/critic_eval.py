"""Evaluation of the experiment's critic on solutions with a known first error."""

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis.critic_scores import critic_scores
from sdcore.critics.benchmark import Trial
from sdcore.critics.validation import Submission
from sdcore.store.schema import TABLES
from tasks.run.condition_run import ConditionRun
from tasks.run.critiques import Handed, criticise, critique_rows, open_critic

_USE = ("traces", "valid", "tokens", "cost")
CONDITION = "critic-eval"  # in place of a condition in the rows of trials and their critiques


@task(cache_policy=NO_CACHE, task_run_name="criticise trials of {run.experiment.name}")
def criticise_trials(run: ConditionRun, trials: list[Trial]) -> list[str]:
    """Store the trials and their critiques; those that are there already are not asked for again.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: the critic's budget allows no further request.
    """
    rows = [_trial_row(run, trial) for trial in trials]
    run.store.append_missing(critic_trials=TABLES["critic_trials"].frame(rows))
    handed = [
        Handed(row["trial_id"], _submission(trial)) for row, trial in zip(rows, trials, strict=True)
    ]
    with open_critic(run) as critic:
        critiques = criticise(run, critic, handed)
    stored = critique_rows(run, critic, handed, critiques)
    run.store.append_missing(critiques=stored)
    return [row["trial_id"] for row in rows]


@task(cache_policy=NO_CACHE, task_run_name="score the critic of {run.experiment.name}")
def score_critic(run: ConditionRun, trial_ids: list[str]) -> dict[str, Any]:
    """The critic's scores on stored trials."""
    with open_critic(run) as critic:
        name = critic.name
    trials = run.store.query(
        "SELECT t.first_wrong_step AS truth, c.first_wrong_step AS claimed, c.* "
        "FROM critic_trials t JOIN critiques c ON c.rollout_id = t.trial_id "
        "WHERE c.critic = $critic AND t.trial_id IN (SELECT unnest($ids)) ORDER BY t.trial_id",
        {"critic": name, "ids": trial_ids},
    )
    scores = critic_scores(trials, run.experiment.evaluation)
    used = run.store.query(
        "FROM critic_use WHERE experiment_id = $experiment_id AND condition = $condition",
        {name: run.columns[name] for name in ("experiment_id", "condition")},
    )
    models = used.rows(named=True) if len(used) > 1 else []  # of a cascade
    each = {f"{count} of {row['model']}": row[count] for row in models for count in _USE}
    return {"critic": name} | scores | each


def _submission(trial: Trial) -> Submission:
    correct, reference = (None, None) if trial.blind else (trial.correct, trial.reference)
    return Submission(trial.question, trial.text, correct, reference, trial.solution)


def _trial_row(run: ConditionRun, trial: Trial) -> dict[str, Any]:
    truth = asdict(trial)
    key = run.key("trial", truth)
    stored = {name: fact for name, fact in truth.items() if name not in ("solution", "blind")}
    return run.columns | {"trial_id": key} | stored
