"""The preflight: rollouts frozen once, criticised once, scored under every context, judged."""

from dataclasses import replace
from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import preflight
from sdcore.analysis.preflight import PURPOSE, Diagnosis
from sdcore.planning.work import most_tokens
from sdcore.reports import plots
from sdcore.reports import preflight as page_of
from sdcore.reports.token_maps import token_map
from sdcore.rollouts import Rollout, judged
from sdcore.training import context_scoring
from sdcore.training.batches import Example
from sdcore.training.token_signals import signal_frame
from tasks.align import context_rows
from tasks.run.condition_run import ConditionRun
from tasks.run.critiques import Handed, criticise, critique_rows, open_critic
from tasks.run.retries import RETRIES
from tasks.sample import sample_missing, stored_rollouts
from tasks.tracking import artifacts


@task(cache_policy=NO_CACHE, task_run_name="freeze {run.label}", **RETRIES)
def freeze(run: ConditionRun) -> int:
    """Sample the rollouts that every context is asked about.

    Returns:
        How many there are.
    """
    return len(frozen_rollouts(run))


@task(cache_policy=NO_CACHE, task_run_name="write contexts {run.label}", **RETRIES)
def write_contexts(run: ConditionRun) -> int:
    """Criticise the frozen rollouts, and write every context that they have the sources of.

    A context that was written before stays as it is, though there may be more rollouts now.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: the critic's budget allows no further request.
    """
    rollouts, problems = frozen_rollouts(run), frozen_problems(run)
    known = run.experiment.known_contexts
    wanted = [known[name] for name in preflight.contexts_of(run.experiment)]
    judges = run.experiment.judge is not None
    asked = judged(rollouts, problems, {}) if judges else []
    handed = Handed.of(asked, run.experiment.grader)
    with open_critic(run) as critic:
        critiques = criticise(run, critic, handed)
    given = judged(rollouts, problems, critiques)
    written = pl.concat(context_rows(run, critic, [each], given) for each in wanted)
    stored = run.store.rows("contexts", **run.columns)
    new = written.join(stored, on=["rollout_id", "context"], how="anti")
    made = critique_rows(run, critic, handed, critiques)
    run.store.append_missing(critiques=made, contexts=new)
    return len(written)


@task(cache_policy=NO_CACHE, task_run_name="score {run.label}")
def score(run: ConditionRun) -> int:
    """Score the frozen rollouts under the contexts that they have not been scored under.

    Returns:
        How many pairs of rollout and context were scored.

    Raises:
        TrainingError: the null check fails, or a prompt does not fit into the model.
    """
    missing = _unscored(run)
    if missing:
        run.store.append_missing(token_signals=_scored(run, missing))
    return len(missing)


@task(cache_policy=NO_CACHE, task_run_name="report {run.label}")
def report(run: ConditionRun) -> Diagnosis:
    """Judge the contexts; write the page and the figure, and log both with the numbers.

    The findings are small and follow from the tables: they are returned to be printed.
    """
    experiment, folder = run.experiment, run.root / "reports"
    problem_ids = frozen_problems(run)["problem_id"].to_list()
    found = preflight.diagnose(run.store, experiment, problem_ids)
    page = page_of.write_page(run.store, experiment, found, folder)
    shown = page_of.examples(run.store, experiment, found)
    figures = [token_map(each.maps, each.question) for each in shown[:1]]
    for figure in figures:
        page.with_suffix(".png").write_bytes(plots.png(figure))
    with run.session.tracking() as tracking:
        tracking.log_measures(experiment, run.condition, run.seed, found.measures)
        tracking.log_text(experiment, page.read_text("utf-8"), "diagnosis.html")
        tracking.log_table(experiment, found.measures, "diagnosis.csv")
        for figure in figures:
            tracking.log_figure(experiment, figure, "diagnosis.png")
        tracking.finish(experiment)
    artifacts.publish_diagnosis(run, page_of.printable(experiment, found), figures)
    return found


def frozen_problems(run: ConditionRun) -> pl.DataFrame:
    """The problems that are looked at, in order."""
    settings = run.experiment.diagnose
    return run.problems(settings.split).head(settings.problems)


def frozen_rollouts(run: ConditionRun) -> list[Rollout]:
    """The frozen rollouts; what is missing of them is sampled.

    With another prompt of the critic (see `preflight.purpose_with`) they are copies, so that each
    has a critique of its own.
    """
    if run.condition != PURPOSE:
        return _copies(run)
    policy, samples = run.policy(0), run.experiment.diagnose.rollouts
    stored = stored_rollouts(run, policy, PURPOSE)
    rollouts = sample_missing(run, policy, PURPOSE, frozen_problems(run), samples, stored)
    return sorted(rollouts, key=lambda each: (each.problem_id, each.sample_index))


def _copies(run: ConditionRun) -> list[Rollout]:
    source = frozen_rollouts(ConditionRun(run.session, run.experiment, PURPOSE, run.seed))
    copies = [
        replace(
            each,
            condition=run.condition,
            purpose=run.condition,
            rollout_id=run.key("copy", each.rollout_id),
        )
        for each in source
    ]
    run.store.append_missing(rollouts=Rollout.to_frame(copies))
    return copies


_UNSCORED = """
    SELECT r.*, c.context, c.teacher_prompt_ids, q.first_wrong_step,
           coalesce(q.valid, false) AS judged
    FROM contexts c JOIN rollouts r USING (rollout_id)
    LEFT JOIN critiques q USING (rollout_id)
    WHERE c.context IN (SELECT unnest($contexts)) AND c.experiment_id = $experiment_id
        AND c.condition = $condition AND c.seed = $seed AND NOT EXISTS (
            FROM token_signals s WHERE s.rollout_id = c.rollout_id AND s.context = c.context)
    ORDER BY c.context, r.problem_id, r.sample_index
"""


def _unscored(run: ConditionRun) -> list[dict[str, Any]]:
    """A row for each rollout and context without signals, with what scoring needs."""
    names = preflight.contexts_of(run.experiment)
    return run.store.query(_UNSCORED, run.columns | {"contexts": list(names)}).to_dicts()


def _scored(run: ConditionRun, missing: list[dict[str, Any]]) -> pl.DataFrame:
    rollouts = {row["rollout_id"]: row for row in missing}
    rows = {(row["context"], row["rollout_id"]): row for row in missing}
    ids = list(rollouts)
    examples = [
        Example(
            rollout_id, rollouts[rollout_id]["prompt_ids"], rollouts[rollout_id]["response_ids"]
        )
        for rollout_id in ids
    ]
    prompts = {
        context: [rows.get((context, each), {}).get("teacher_prompt_ids") for each in ids]
        for context in dict.fromkeys(row["context"] for row in missing)
    }
    budget = most_tokens(run.experiment.training)
    policy = run.session.models.base_policy(run)
    scored, signals = [], []
    measured = run.session.clock.measure("compute")
    with measured, run.session.panel.bar("scores", total=len(missing)) as advance:
        for context, index, each in context_scoring.context_signals(
            policy, examples, prompts, budget
        ):
            scored.append(rows[context, ids[index]])
            signals.append(each)
            advance(1)
    tokenizer = run.tokenizer
    return signal_frame(tokenizer, scored, signals, run.columns)
