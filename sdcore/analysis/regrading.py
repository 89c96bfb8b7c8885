"""Stored traces parsed and graded again by today's code."""

import polars as pl

from sdcore.grading.graders import Response, grade_responses
from sdcore.traces import parse_trace

GRADES = ("answer", "reward", "correct", "grade_details", "grade_reason", "well_formed")


def regraded(rollouts: pl.DataFrame, grader: str = "math") -> pl.DataFrame:
    """Return the rollouts whose grade differs now.

    Args:
        rollouts: rollout_id, text, the columns of `GRADES`, and the problem's question and
            reference.
        grader: the experiment's.

    Returns:
        rollout_id and the new `GRADES` of those of which any differs.

    Raises:
        DataError: the grader fails at a rollout.
    """
    traces = [parse_trace(text) for text in rollouts["text"]]
    rows = rollouts.select("rollout_id", "question", "reference", "text").iter_rows(named=True)
    responses = [
        Response(**row, answer=trace.answer) for row, trace in zip(rows, traces, strict=True)
    ]
    rewards = grade_responses(grader, responses)
    now = pl.DataFrame(
        {
            "rollout_id": rollouts["rollout_id"],
            "answer": [trace.answer for trace in traces],
            "reward": [reward.value for reward in rewards],
            "correct": [reward.correct for reward in rewards],
            "grade_details": [reward.details for reward in rewards],
            "grade_reason": [reward.reason for reward in rewards],
            "well_formed": [trace.well_formed for trace in traces],
        },
        schema_overrides={name: pl.String for name in ("answer", "grade_details", "grade_reason")},
    )
    changed = [~now[name].eq_missing(rollouts[name]) for name in GRADES]
    return now.filter(pl.any_horizontal(changed))
