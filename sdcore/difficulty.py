"""How hard each problem is for a policy, and whether it lies in the learnable-but-hard band.

The paper (arXiv 2606.11173) trains on problems that the solver seldom gets right, in the right form
all the same, and that the critic can solve.
"""

from collections.abc import Mapping

import polars as pl

from sdcore.config import BandConfig


def measure(
    rollouts: pl.DataFrame, critic_solves: Mapping[str, bool | None], band: BandConfig
) -> pl.DataFrame:
    """One row a problem: the columns of the table `difficulties` from `problem_id` on.

    Args:
        rollouts: rows of the table `rollouts`, of one policy.
        critic_solves: by problem; None is not known, and is not held against the problem.
        band: its bounds.
    """
    known = pl.DataFrame(
        {"problem_id": list(critic_solves), "critic_solves": list(critic_solves.values())},
        {"problem_id": pl.String(), "critic_solves": pl.Boolean()},
    )
    rows = rollouts.group_by("problem_id", "policy_id").agg(
        k=pl.len(),
        avg_at_k=pl.col("correct").mean(),
        format_rate=pl.col("well_formed").mean(),
    )
    hard = pl.col("avg_at_k") < band.accuracy_below
    formed = pl.col("format_rate") >= band.format_rate
    solvable = pl.col("critic_solves").fill_null(True)
    joined = rows.join(known, on="problem_id", how="left").sort("problem_id")
    return joined.with_columns(in_band=hard & formed & solvable)
