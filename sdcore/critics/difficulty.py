"""Difficulty of problems for a policy, and the learnable-but-hard band.

The paper (arXiv 2606.11173) trains on problems that the solver seldom gets right, although its
traces are well-formed, and that the critic can solve.
"""

from collections.abc import Iterator, Sequence

import polars as pl

from sdcore.config import BandConfig, PromptsConfig
from sdcore.critics.budget import Paid
from sdcore.critics.llm import Client
from sdcore.critics.parsing import without_thinking
from sdcore.grading.answers import grade
from sdcore.models.prompts import student_messages
from sdcore.traces import parse_trace


def measure(rollouts: pl.DataFrame, band: BandConfig) -> pl.DataFrame:
    """Measure the solver on each problem, and test the result against the band's bounds.

    Args:
        rollouts: rows of the table `rollouts`, of one policy.
        band: the bounds.

    Returns:
        The solver's columns of the table `difficulties`, one row per problem, ordered by
        problem_id.
    """
    rows = rollouts.group_by("problem_id", "policy_id").agg(
        k=pl.len(),
        avg_at_k=pl.col("correct").mean(),
        format_rate=pl.col("well_formed").mean(),
    )
    hard = pl.col("avg_at_k") < band.accuracy_below
    formed = pl.col("format_rate") >= band.format_rate
    return rows.sort("problem_id").with_columns(in_band=hard & formed)


def try_to_solve(
    client: Client, problems: Sequence[tuple[str, str]]
) -> Iterator[tuple[int, bool | None, Paid]]:
    """Ask a language model for its own solutions, in the solver's default form.

    Args:
        client: the connection to the model.
        problems: pairs of question and reference answer.

    Yields:
        Index of a problem, whether the answer is right (None without an answer), and its price.

    Raises:
        EngineError: the model cannot be asked at all.
        BudgetError: the next request could cost more than may be spent.
    """
    asked = [student_messages(PromptsConfig(), question) for question, _ in problems]
    for index, reply in client.ask(asked):
        paid = Paid(reply.cost, reply.prompt_tokens + reply.tokens)
        if reply.text is None:
            yield index, None, paid
        else:
            answer = parse_trace(without_thinking(reply.text)).answer
            yield index, grade(answer, problems[index][1]).correct, paid
