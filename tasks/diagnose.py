"""The preflight: rollouts frozen once, criticised once, scored under every context, judged."""

from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.analysis import preflight
from sdcore.analysis.preflight import PURPOSE, Diagnosis
from sdcore.reports import plots
from sdcore.reports import preflight as page_of
from sdcore.reports.token_maps import token_map
from sdcore.system.stopwatch import STOPWATCH
from sdcore.training import context_scoring
from sdcore.training.batches import Example
from sdcore.training.token_signals import signal_frame
from tasks.align import context_rows, with_problems
from tasks.run import live, progress
from tasks.run.critiques import criticise, critique_rows, open_critic
from tasks.run.lineage import Lineage, Reference, split_problems
from tasks.run.retries import RETRIES
from tasks.sample import sample_missing
from tasks.track import open_tracking
from tasks.tracking import artifacts

Row = dict[str, Any]


@task(cache_policy=NO_CACHE, task_run_name="freeze {lineage.label}", **RETRIES)
def freeze(lineage: Lineage) -> Reference:
    """Sample the rollouts that every context is asked about."""
    samples = lineage.experiment.diagnose.rollouts
    rollouts = sample_missing(lineage, 0, PURPOSE, _problems(lineage), samples)
    return Reference("rollouts", lineage.label, len(rollouts))


@task(cache_policy=NO_CACHE, task_run_name="write contexts {lineage.label}", **RETRIES)
def write_contexts(lineage: Lineage) -> Reference:
    """Criticise the frozen rollouts, and write every context that they have the sources of.

    A context that was written before stays as it is, though there may be more rollouts now.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: the critic's budget allows no further request.
    """
    rollouts, critic = with_problems(_rollouts(lineage), _problems(lineage)), open_critic(lineage)
    known = lineage.experiment.known_contexts
    wanted = [known[name] for name in preflight.contexts_of(lineage.experiment)]
    with STOPWATCH.measure("compute"):
        judged = rollouts if lineage.experiment.judge else []
        critiques = criticise(lineage, critic, judged)
        frames = [context_rows(lineage, critic, [each], rollouts, critiques) for each in wanted]
    written = pl.concat(frames)
    stored = lineage.store.rows("contexts", **lineage.columns)
    new = written.join(stored, on=["rollout_id", "context"], how="anti")
    made = critique_rows(lineage, critic, judged, critiques)
    lineage.store.append_missing(critiques=made, contexts=new)
    return Reference("contexts", lineage.label, len(written))


@task(cache_policy=NO_CACHE, task_run_name="score {lineage.label}")
def score(lineage: Lineage) -> Reference:
    """Score the frozen rollouts under the contexts that they have not been scored under.

    Raises:
        TrainingError: the null check fails, or a prompt does not fit into the model.
    """
    missing = _unscored(lineage)
    if missing:
        with STOPWATCH.measure("compute"):
            signals = _scored(lineage, missing)
        lineage.store.append_missing(token_signals=signals)
    return Reference("token_signals", lineage.label, len(missing))


@task(cache_policy=NO_CACHE, task_run_name="report {lineage.label}")
def report(lineage: Lineage) -> Diagnosis:
    """Judge the contexts; write the page and the figure, and log both with the numbers.

    The findings are small and follow from the tables: they are returned to be printed.
    """
    experiment, folder = lineage.experiment, lineage.root / "reports"
    with STOPWATCH.measure("compute"):
        problem_ids = _problems(lineage)["problem_id"].to_list()
        found = preflight.diagnose(lineage.store, experiment, problem_ids)
        page = page_of.write_page(lineage.store, experiment, found, folder)
        shown = page_of.examples(lineage.store, experiment, found)
        figures = [token_map(each.maps, each.question) for each in shown[:1]]
    with STOPWATCH.measure("tracking"):
        tracking = open_tracking(lineage.root)
        tracking.log_measures(experiment, lineage.condition, lineage.seed, found.measures)
        tracking.log_text(experiment, page.read_text("utf-8"), "diagnosis.html")
        tracking.log_table(experiment, found.measures, "diagnosis.csv")
        for figure in figures:
            page.with_suffix(".png").write_bytes(plots.png(figure))
            tracking.log_figure(experiment, figure, "diagnosis.png")
        tables = page_of.printable(experiment, found)
        artifacts.publish_diagnosis(lineage, tables, figures)
        tracking.finish(experiment)
    return found


def _problems(lineage: Lineage) -> pl.DataFrame:
    settings = lineage.experiment.diagnose
    return split_problems(lineage, settings.split).head(settings.problems)


def _rollouts(lineage: Lineage) -> pl.DataFrame:
    rollouts = lineage.store.rows("rollouts", purpose=PURPOSE, **lineage.columns)
    planned = rollouts.filter(pl.col("sample_index") < lineage.experiment.diagnose.rollouts)
    wanted = _problems(lineage).select("problem_id")
    chosen = planned.join(wanted, on="problem_id", how="semi")
    return chosen.sort("problem_id", "sample_index")


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


def _unscored(lineage: Lineage) -> list[Row]:
    """A row for each rollout and context without signals, with what scoring needs."""
    names = preflight.contexts_of(lineage.experiment)
    return lineage.store.query(_UNSCORED, lineage.columns | {"contexts": list(names)}).to_dicts()


def _scored(lineage: Lineage, missing: list[Row]) -> pl.DataFrame:
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
    budget = lineage.experiment.training.tokens_per_microbatch
    policy = live.base_policy(lineage)
    scored, signals = [], []
    with progress.bar("scores", total=len(missing)) as advance:
        for context, index, each in context_scoring.context_signals(
            policy, examples, prompts, budget
        ):
            scored.append(rows[context, ids[index]])
            signals.append(each)
            advance(1)
    tokenizer = live.tokenizer(lineage.experiment.model.name)
    return signal_frame(tokenizer, scored, signals, lineage.columns)
