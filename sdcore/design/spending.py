"""Spending of a search, from the tables: sampled tokens, the critic's tokens, and its price."""

from dataclasses import dataclass

import polars as pl

from sdcore.store.database import Store

_SPENT = """
    FROM (
        SELECT condition, purpose, round, len(response_ids) AS sampled, 0 AS critic, 0.0 AS cost
        FROM rollouts WHERE experiment_id = $id AND purpose NOT LIKE 'diagnose/%'  -- copies
        UNION ALL
        SELECT condition, 'teacher', 0, len(response_ids), 0, 0.0
        FROM teacher_samples WHERE experiment_id = $id
        UNION ALL
        SELECT condition, 'branch', 0, 1 + len(response_ids) + len(resampled_ids), 0, 0.0
        FROM branches WHERE experiment_id = $id
        UNION ALL
        SELECT c.condition, r.purpose, r.round, 0, c.prompt_tokens + c.tokens, c.cost
        FROM critiques c JOIN rollouts r USING (rollout_id) WHERE c.experiment_id = $id
        UNION ALL
        SELECT 'base', 'filter', 0, 0, critic_tokens, critic_cost
        FROM difficulties WHERE experiment_id = $id
    )
    SELECT condition, purpose, round, sum(sampled)::BIGINT AS sampled,
           sum(critic)::BIGINT AS critic, sum(cost)::DOUBLE AS cost
    GROUP BY ALL ORDER BY ALL
"""


@dataclass(frozen=True)
class Spent:
    """Response tokens of the solver, tokens that the critic read and wrote, and their price."""

    sampled: int = 0
    critic: int = 0
    cost: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.sampled + other.sampled, self.critic + other.critic, self.cost + other.cost
        )


def spending(store: Store, experiment_id: str) -> pl.DataFrame:
    """Return what a run has sampled: columns condition, purpose, round, sampled, critic, cost."""
    return store.query(_SPENT, {"id": experiment_id})


def total(rows: pl.DataFrame) -> Spent:
    """The sum of rows of `spending`."""
    sampled, critic, cost = (rows[name].sum() for name in ("sampled", "critic", "cost"))
    return Spent(int(sampled), int(critic), float(cost))


def of_rung(rows: pl.DataFrame, condition: str, after: int, until: int) -> pl.DataFrame:
    """The rows of a candidate that a rung from `after` to `until` rounds has added."""
    trained = (pl.col("purpose") == "train") & pl.col("round").is_between(after, until - 1)
    scored = (pl.col("purpose") == "validation") & (pl.col("round") == until)
    return rows.filter(trained | scored, condition=condition)
