"""How good the experiment's critic is, on solutions with a known first error."""

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis.critic_scores import critic_scores
from sdcore.critics.benchmark import Trial
from sdcore.store.schema import TABLES
from tasks.run.critiques import criticise, critique_rows, open_critic
from tasks.run.lineage import Lineage

CONDITION = "critic-eval"  # in place of a condition in the rows of trials and their critiques


@task(cache_policy=NO_CACHE, task_run_name="criticise trials of {lineage.experiment.name}")
def criticise_trials(lineage: Lineage, trials: list[Trial]) -> list[str]:
    """Store the trials and their critiques; those that are there already are not asked for again.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: the critic's budget allows no further request.
    """
    rows = [_trial_row(lineage, trial) for trial in trials]
    lineage.store.append_missing(critic_trials=TABLES["critic_trials"].frame(rows))
    rollouts = [
        row
        | {"rollout_id": row["trial_id"], "solution": trial.solution}
        | ({"correct": None, "reference": None} if trial.blind else {})
        for row, trial in zip(rows, trials, strict=True)
    ]
    critic = open_critic(lineage)
    critiques = criticise(lineage, critic, rollouts)
    stored = critique_rows(lineage, critic, rollouts, critiques)
    lineage.store.append_missing(critiques=stored)
    return [row["trial_id"] for row in rows]


@task(cache_policy=NO_CACHE, task_run_name="score the critic of {lineage.experiment.name}")
def score_critic(lineage: Lineage, trial_ids: list[str]) -> dict[str, Any]:
    """The critic's scores on stored trials."""
    critic = open_critic(lineage)
    trials = lineage.store.query(
        "SELECT t.first_wrong_step AS truth, c.first_wrong_step AS claimed, c.* "
        "FROM critic_trials t JOIN critiques c ON c.rollout_id = t.trial_id "
        "WHERE c.critic = $critic AND t.trial_id IN (SELECT unnest($ids)) ORDER BY t.trial_id",
        {"critic": critic.name, "ids": trial_ids},
    )
    scores = critic_scores(trials, lineage.experiment.evaluation)
    return {"critic": critic.name} | scores


def _trial_row(lineage: Lineage, trial: Trial) -> dict[str, Any]:
    truth = asdict(trial)
    key = lineage.key("trial", truth)
    return (
        lineage.columns
        | {"trial_id": key}
        | {name: value for name, value in truth.items() if name not in ("solution", "blind")}
    )
