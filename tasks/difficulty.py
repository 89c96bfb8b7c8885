"""Stage 1½, where an experiment asks for it: the problems that are hard, but learnable."""

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from sdcore.config import BandConfig, LlmCriticConfig
from sdcore.critics.difficulty import measure, try_to_solve
from sdcore.errors import DataError
from sdcore.rollouts import Rollout
from sdcore.store.schema import TABLES
from tasks.run.condition_run import ConditionRun
from tasks.run.critiques import critic_budget, open_client
from tasks.run.progress import note
from tasks.run.retries import RETRIES
from tasks.sample import sample_missing, stored_rollouts


@task(cache_policy=NO_CACHE, task_run_name="measure difficulty of {split} problems", **RETRIES)
def measure_difficulty(base: ConditionRun, split: str) -> int:
    """Measure candidates of a split, so many at a time as are wanted, until enough are in the band.

    Raises:
        DataError: too few of all candidates are.
        EngineError: the critic cannot be asked.
        BudgetError: the critic's budget allows no further request.
    """
    band, offered = base.experiment.problems.band, base.candidates(split)
    assert band is not None, "the experiment has no band"
    wanted: int = getattr(base.experiment.problems, split)
    found = 0
    for chunk in offered.iter_slices(wanted):
        found += _measured(base, chunk, band)
        if found >= wanted:
            break
    else:
        raise DataError(
            f"too few {split} problems are hard but learnable",
            got=f"{found} of {len(offered)}",
            expected=f"{wanted} with {band}",
            fix="widen problems.band, or raise problems.band.candidates; the table difficulties "
            "has the measures",
        )
    note(f"{split}: {found} problems of {len(offered)} candidates are hard but learnable")
    return found


def _measured(base: ConditionRun, problems: pl.DataFrame, band: BandConfig) -> int:
    """Store what is missing of these problems' difficulties; how many are in the band."""
    policy = base.policy(0)
    known = stored_rollouts(base, policy, "filter", problem_id=problems["problem_id"].to_list())
    rollouts = sample_missing(base, policy, "filter", problems, band.samples, known)
    solver = base.experiment.has_exact_critic
    rows = measure(Rollout.to_frame(rollouts), band).with_columns(
        experiment_id=pl.lit(base.experiment.experiment_id),
        critic_solves=pl.lit(True if solver else None, pl.Boolean),
        critic_tokens=0,
        critic_cost=0.0,
    )
    if base.experiment.judge and base.experiment.judge.models:
        *_, strongest = base.experiment.judge.models
        _ask_critic(base, strongest, problems, rows.filter("in_band"))
        rows = rows.filter(~pl.col("in_band"))
    base.store.append_missing(difficulties=rows)
    return len(_in_band(base, problems))


def _ask_critic(
    base: ConditionRun, critic: LlmCriticConfig, problems: pl.DataFrame, hard: pl.DataFrame
) -> None:
    """Let the critic try what is hard, and store each of its answers as it comes."""
    stored = base.store.rows(
        "difficulties",
        experiment_id=base.experiment.experiment_id,
        problem_id=hard["problem_id"].to_list(),
    )
    open_ = hard.join(stored, on="problem_id", how="anti").to_dicts()
    texts = {
        id_: (question, answer)
        for id_, question, answer in problems.select(
            "problem_id", "question", "reference"
        ).iter_rows()
    }
    bar = base.session.panel.bar("problems that the critic tries", len(open_))
    with critic_budget(base) as budget, bar as advance:
        client = open_client(base, budget, critic.model_copy(update={"structured": False}))
        asked = [texts[row["problem_id"]] for row in open_]
        for index, solves, paid in try_to_solve(client, asked):
            answer = {
                "critic_solves": solves,
                "critic_tokens": paid.tokens,
                "critic_cost": paid.cost,
                "in_band": bool(solves),
            }
            frame = TABLES["difficulties"].frame([open_[index] | answer])
            base.store.append_missing(difficulties=frame)
            advance(1, critic_tokens=paid.tokens, cost=paid.cost)


def _in_band(base: ConditionRun, problems: pl.DataFrame) -> pl.DataFrame:
    return base.store.rows(
        "difficulties",
        experiment_id=base.experiment.experiment_id,
        problem_id=problems["problem_id"].to_list(),
        in_band=True,
    )
