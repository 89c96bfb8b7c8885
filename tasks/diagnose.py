"""The preflight: rollouts frozen once, criticised once, scored under every context, judged."""

from typing import Any

import polars as pl
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from sdcore import diagnosis, scoring
from sdcore.batches import Example
from sdcore.config import Experiment
from sdcore.critics import has_oracle
from sdcore.diagnosis import PURPOSE, Diagnosis
from sdcore.schema import TABLES
from sdcore.signals import signal_frame
from sdcore.timing import STOPWATCH
from tasks import models, progress
from tasks.align import context_rows, critique_rows, critiques_of, with_problems
from tasks.sample import sample_missing
from tasks.workspace import Lineage, Reference, policy_row, split_problems

Row = dict[str, Any]


@task(cache_policy=NO_CACHE, task_run_name="freeze {lineage.label}")
def freeze(lineage: Lineage) -> Reference:
    """Sample the rollouts that every context is asked about."""
    samples = lineage.experiment.diagnose.rollouts
    rows = sample_missing(lineage, 0, PURPOSE, _problems(lineage), samples)
    return Reference("rollouts", lineage.label, rows)


@task(cache_policy=NO_CACHE, task_run_name="criticise {lineage.label}")
def criticise(lineage: Lineage) -> Reference:
    """Criticise the frozen rollouts, and write every context that they have the sources of.

    A context that was written before stays as it is, though there may be more rollouts now.
    """
    rollouts = with_problems(_rollouts(lineage), _problems(lineage))
    with STOPWATCH.measure("compute"):
        judged = has_oracle(lineage.experiment.problems)
        critiques = critiques_of(rollouts) if judged else {}
        names = diagnosis.contexts_of(lineage.experiment)
        written = pl.concat(context_rows(lineage, name, rollouts, critiques) for name in names)
    known = lineage.store.rows("contexts", **lineage.columns)
    new = written.join(known, on=["rollout_id", "context"], how="anti")
    lineage.store.append_missing(critiques=critique_rows(lineage, critiques), contexts=new)
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
    names = diagnosis.contexts_of(lineage.experiment)
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
    policy = models.base_policy(lineage)
    scored, signals = [], []
    with progress.bar("scores", total=len(missing)) as advance:
        for context, index, each in scoring.context_signals(policy, examples, prompts, budget):
            scored.append(rows[context, ids[index]])
            signals.append(each)
            advance(1)
    tokenizer = models.tokenizer(lineage.experiment.model.name)
    return signal_frame(tokenizer, scored, signals, lineage.columns)
