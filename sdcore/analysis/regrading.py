"""Stored traces parsed and graded anew: what the grader of today says of them."""

import polars as pl

from sdcore.grading.answers import grade_many
from sdcore.traces import parse_trace

GRADES = ("answer", "correct", "grade_reason", "well_formed")


def regraded(rollouts: pl.DataFrame) -> pl.DataFrame:
    """The rollouts whose grade is another one now.

    Args:
        rollouts: rollout_id, text, the columns of `GRADES`, and `reference`, the right answer.

    Returns:
        rollout_id and the new `GRADES` of those of which any differs.
    """
    traces = [parse_trace(text) for text in rollouts["text"]]
    grades = grade_many([trace.answer for trace in traces], rollouts["reference"].to_list())
    columns = {
        "rollout_id": rollouts["rollout_id"],
        "answer": [trace.answer for trace in traces],
        "correct": [grade.correct for grade in grades],
        "grade_reason": [grade.reason for grade in grades],
        "well_formed": [trace.well_formed for trace in traces],
    }
    now = pl.DataFrame(columns, schema_overrides={"answer": pl.String, "grade_reason": pl.String})
    changed = [~now[name].eq_missing(rollouts[name]) for name in GRADES]
    return now.filter(pl.any_horizontal(changed))
