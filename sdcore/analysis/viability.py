"""Branch viability: does the teacher's preferred token lead the student to the right answer?

Where the teacher disagrees with a token of a wrong rollout, its preferred token is forced after the
student's own prefix, and the student goes on without any context. What comes out right is a ground
truth that advantages only stand for, though not of what can be learnt: a forced token may hand over
a result that the student cannot derive. A student that goes on from the same prefix with a token of
its own, with the same random numbers, is the baseline. Intervals are bootstraps over problems.
"""

from collections.abc import Mapping

import polars as pl

from sdcore.analysis.signal_stats import auc_of, token_means
from sdcore.config import EvaluationConfig
from sdcore.store.database import Store

BEFORE, AT, AFTER = "before", "at", "after"

MEASURES = {
    "viable": "share of right answers where the teacher's preferred token was forced, at tokens of "
    "wrong rollouts with which it disagrees",
    "resampled": "share where the student went on from there with a token of its own",
    "viable_gain": "their paired difference",
    "viable_before": "this difference at tokens before the first wrong step",
    "viable_at": "at tokens of the first wrong step",
    "viable_after": "at tokens after it",
    "viable_auc_advantage": "AUC of −advantage as a sign of tokens whose replacement ends right; "
    "0.5 is no sign",
    "viable_auc_kl": "AUC of the KL",
    "viable_auc_entropy": "AUC of the student's entropy",
}

_ASKED = """
    WITH signals AS (
        SELECT s.*, r.problem_id, min(s.position) FILTER (s.region = 'at') OVER rollout AS first_at,
               max(s.position) FILTER (s.region = 'at') OVER rollout AS last_at
        FROM token_signals s JOIN rollouts r USING (rollout_id)
        WHERE r.experiment_id = $id AND r.purpose = $purpose AND r.sample_index < $rollouts
            AND r.problem_id IN (SELECT unnest($problems)) AND NOT r.correct
            AND s.context IN (SELECT unnest($contexts)) AND s.context <> 'none'
        WINDOW rollout AS (PARTITION BY s.context, s.rollout_id)
    )
    SELECT s.experiment_id, s.context, s.rollout_id, s.problem_id, s.position, s.token_id,
           s.advantage, s.kl, s.entropy, r.policy_id, r.round, r.prompt_ids, r.response_ids,
           c.teacher_prompt_ids,
           CASE WHEN position < first_at THEN 'before'
                WHEN position <= last_at THEN 'at' ELSE 'after' END AS place
    FROM signals s JOIN rollouts r USING (rollout_id)
    JOIN contexts c ON (c.rollout_id, c.context) = (s.rollout_id, s.context)
    WHERE first_at IS NOT NULL AND s.teacher_logprob < ln(0.5)
    QUALIFY row_number() OVER (
        PARTITION BY s.context, s.rollout_id ORDER BY md5(s.rollout_id || ' ' || s.position)
    ) <= $branches
    ORDER BY s.context, s.rollout_id, s.position
"""
_STORED = """
    SELECT context, rollout_id, position, agrees, correct, resampled_correct
    FROM branches WHERE experiment_id = $id
"""


def asked(store: Store, parameters: Mapping[str, object], branches: int) -> pl.DataFrame:
    """Return the tokens to branch at: up to `branches` per wrong rollout and context.

    They are drawn by a hash among those to which the teacher gives less than half: it prefers any
    other to a token with more. Only rollouts whose first wrong step is known have any.

    Args:
        store: the workspace's tables.
        parameters: id and purpose of the rollouts, problems, rollouts (per problem), contexts.
        branches: per rollout and context.

    Returns:
        Columns experiment_id, context, rollout_id, problem_id, position, token_id, place (before,
        at or after the first wrong step, tags included), advantage, kl, entropy, and of the rollout
        policy_id, round, prompt_ids, response_ids and teacher_prompt_ids.
    """
    return store.query(_ASKED, {**parameters, "branches": branches})


def measures(store: Store, planned: pl.DataFrame, settings: EvaluationConfig) -> pl.DataFrame:
    """Every one of `MEASURES` that has data, for each context.

    Args:
        store: the workspace's tables.
        planned: what `asked` returns; stored branches that are not in it do not count.
        settings: of the intervals.

    Returns:
        Columns context, measure, value, low, high, tokens (branches), rollouts.
    """
    key = ["context", "rollout_id", "position"]
    if not len(planned):
        return pl.DataFrame(schema=_SCHEMA)
    stored = store.query(_STORED, {"id": planned["experiment_id"][0]})
    return of_branches(planned.join(stored.filter(~pl.col("agrees")), on=key), settings)


_SCHEMA = {
    "context": pl.String(), "measure": pl.String(), "value": pl.Float64(), "low": pl.Float64(),
    "high": pl.Float64(), "tokens": pl.Int64(), "rollouts": pl.Int64(),
}  # fmt: skip


def of_branches(branches: pl.DataFrame, settings: EvaluationConfig) -> pl.DataFrame:
    """The measures of branches: columns context, rollout_id, problem_id, place, the scores
    (advantage, kl, entropy), correct and resampled_correct.
    """
    by = ["context"]
    right, own = (pl.col(name).cast(pl.Float64) for name in ("correct", "resampled_correct"))
    gain = right - own
    shares = {"viable": right, "resampled": own, "viable_gain": gain}
    scores = {"advantage": -pl.col("advantage"), "kl": pl.col("kl"), "entropy": pl.col("entropy")}
    parts = [
        token_means(branches, by, settings, shares),
        *(
            token_means(branches.filter(place=place), by, settings, {f"viable_{place}": gain})
            for place in (BEFORE, AT, AFTER)
        ),
        *(
            auc_of(branches, by, settings, pl.col("correct"), score).select(
                *by, pl.lit(f"viable_auc_{name}").alias("measure"), "value", "low", "high",
                "tokens", "rollouts",
            )
            for name, score in scores.items()
        ),
    ]  # fmt: skip
    frame = pl.concat([part.select(list(_SCHEMA)) for part in parts])
    return frame.sort("context", pl.col("measure").cast(pl.Enum(list(MEASURES))))
