"""Scores of a policy on a split, from its graded rollouts."""

from dataclasses import dataclass

import polars as pl

from sdcore.analysis.intervals import grid_mean
from sdcore.analysis.metrics import METRICS, SHARE, avg_at_k, maj_at_k, pass_at_k
from sdcore.config import EvaluationConfig
from sdcore.errors import DataError
from sdcore.grading.answers import same_answers
from sdcore.store.schema import TABLES


@dataclass(frozen=True)
class Score:
    """One policy on one split: `columns` of the table `scores`, and the METRICS per problem."""

    columns: dict[str, float | int]
    problems: pl.DataFrame

    def problem_rows(self, row: dict[str, object]) -> pl.DataFrame:
        """Rows of the table `problem_scores` that belong to a row of `scores`."""
        table = TABLES["problem_scores"]
        shared = [name for name in table.dtypes if name not in self.problems.columns]
        return table.checked(self.problems.with_columns(pl.lit(row[n]).alias(n) for n in shared))


def per_problem(rollouts: pl.DataFrame) -> pl.DataFrame:
    """Return the metrics of each problem: columns problem_id and METRICS with k = samples.

    Args:
        rollouts: of one policy; columns problem_id, sample_index, answer and correct. The vote of
            maj@k counts answers that the grader holds to be equal as one, right and wrong alike.

    Raises:
        DataError: a problem does not have exactly the samples 0 .. k - 1, once each.
    """
    rows = rollouts.sort("problem_id", "sample_index")
    k = _samples(rows)
    correct_PN = rows["correct"].to_numpy().reshape(-1, k)
    codes = [same_answers(answers) for answers in _chunks(rows["answer"].to_list(), k)]
    return rows.gather_every(k).select(
        "problem_id",
        avg_at_k=avg_at_k(correct_PN),
        maj_at_k=maj_at_k(codes, correct_PN),
        pass_at_k=pass_at_k(correct_PN, k),
    )


def score(rollouts: pl.DataFrame, k: int, settings: EvaluationConfig) -> Score:
    """Return the scores of one policy on one split that follow from its rollouts.

    The intervals are over problems, for this policy alone.

    Raises:
        DataError: samples are missing, repeat, or share a random seed.
    """
    if rollouts["sampling_seed"].n_unique() != len(rollouts):
        raise DataError("samples share a sampling seed", fix="delete these rollouts, rerun")
    metrics = per_problem(rollouts)
    if len(rollouts) != k * len(metrics):
        raise DataError("wrong number of samples", got=len(rollouts), expected=k * len(metrics))
    columns: dict[str, float | int] = {"problems": len(metrics), "k": k}
    for name in METRICS:
        mean = grid_mean(
            metrics.select(name).to_numpy(), settings.confidence, fixed=True, limits=SHARE
        )
        columns |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
    columns["mean_reward"] = float(rollouts["reward"].mean())  # type: ignore[arg-type]
    columns["mean_length"] = float(rollouts["response_ids"].list.len().mean())  # type: ignore[arg-type]
    columns["format_rate"] = float(rollouts["well_formed"].mean())  # type: ignore[arg-type]
    return Score(columns, metrics)


def _chunks(values: list[str | None], size: int) -> list[list[str | None]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _samples(rollouts: pl.DataFrame) -> int:
    """Return the number of samples per problem, if all problems have that many distinct ones."""
    index = pl.col("sample_index")
    groups = rollouts.group_by("problem_id").agg(
        rows=pl.len(), distinct=index.n_unique(), first=index.min(), last=index.max()
    )
    k = len(rollouts) // max(len(groups), 1)
    bad = groups.filter(
        (pl.col("rows") != k) | (pl.col("distinct") != k) | (pl.col("first") != 0)
        | (pl.col("last") != k - 1)
    )  # fmt: skip
    if len(bad) or not k:
        raise DataError(
            "samples are missing or repeat",
            got=bad.head(1).to_dicts() or "no rollouts",
            expected="each problem to have the samples 0 .. k - 1, once each",
        )
    return k
