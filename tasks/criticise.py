"""Critiques for a stage. What a critic was once paid for is looked up and never asked again."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from sdcore.alignment import Submission, verbatim_prefix
from sdcore.config import LlmCriticConfig
from sdcore.contexts import Critique
from sdcore.critic_client import Endpoint, EngineClient
from sdcore.critics import Client, Critic, LlmCritic, OracleCritic
from sdcore.schema import TABLES
from sdcore.traces import parse_trace
from tasks import models, progress
from tasks.workspace import Lineage

Row = dict[str, Any]

_COPIED = (
    "first_wrong_step", "corrected", "valid", "invalid_reason", "repaired", "raw", "attempts",
    "prompt_tokens", "tokens", "cost",
)  # fmt: skip
_KNOWN = """
    SELECT content_id, verdict AS case, COLUMNS(c -> c IN $copied) FROM critiques
    WHERE content_id IN (SELECT unnest($contents)) AND raw IS NOT NULL
        AND attempts > 0 AND (valid OR attempts >= $attempts)
"""


def open_critic(lineage: Lineage) -> Critic:
    """The experiment's critic; what it has cost so far counts towards its budget."""
    config = lineage.experiment.judge
    if not isinstance(config, LlmCriticConfig):
        return OracleCritic()
    if config.base_url is None:
        name = config.model
        client: Client = EngineClient(models.critic_engine(name), models.tokenizer(name), config)
    else:
        client = Endpoint(config, _spent(lineage))
    return LlmCritic(config, client)


def criticise(lineage: Lineage, critic: Critic, rollouts: Sequence[Row]) -> dict[str, Critique]:
    """The critique of each rollout, by its id; what a language model says is stored as it comes.

    Equal traces are asked about once, also those of other conditions and experiments of the
    workspace. A rollout has: rollout_id, question, text, correct, reference and solution.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: critic.max_budget allows no further request; what was answered is stored.
    """
    contents = [critic.content_id(_submission(row)) or row["rollout_id"] for row in rollouts]
    found = _known(lineage, contents)
    pairs = zip(contents, rollouts, strict=True)
    asked = {content: row for content, row in pairs if content not in found}
    order = list(asked)
    with progress.bar(f"critiques of {lineage.label}", total=len(order)) as advance:
        for index, critique in critic.criticise([_submission(asked[each]) for each in order]):
            found[order[index]] = critique
            if critique.raw is not None:
                row = asked[order[index]]
                rows = critique_rows(lineage, critic, [row], {row["rollout_id"]: critique})
                lineage.store.append_missing(critiques=rows)
            advance(1)
    paid = {row["rollout_id"] for row in asked.values()}
    critiques = {row["rollout_id"]: found[key] for key, row in zip(contents, rollouts, strict=True)}
    return {key: each if key in paid else _free(each) for key, each in critiques.items()}


def critique_rows(
    lineage: Lineage, critic: Critic, rollouts: Sequence[Row], critiques: Mapping[str, Critique]
) -> pl.DataFrame:
    """The critiques of rollouts as rows of their table."""
    rows: list[Row] = []
    for rollout in rollouts:
        critique = critiques[rollout["rollout_id"]]
        rows.append(
            lineage.columns
            | {
                "critique_id": critique_id(lineage, critic, rollout["rollout_id"]),
                "rollout_id": rollout["rollout_id"],
                "critic": critic.name,
                "content_id": critic.content_id(_submission(rollout)),
                "verdict": critique.case,
                "prefix_tokens": _prefix_tokens(lineage, rollout, critique),
            }
            | {name: getattr(critique, name) for name in _COPIED}
        )
    return TABLES["critiques"].frame(rows)


def critique_id(lineage: Lineage, critic: Critic, rollout_id: str) -> str:
    """Key of a critic's critique of a rollout."""
    return lineage.key("critique", rollout_id, critic.name)


def _submission(row: Row) -> Submission:
    return Submission(
        row["question"], row["text"], row["correct"], row["reference"], row["solution"]
    )


def _spent(lineage: Lineage) -> float:
    """What the critics of the experiment have cost so far."""
    costs = lineage.store.query(
        "SELECT coalesce(sum(cost), 0) FROM critiques WHERE experiment_id = ?",
        [lineage.experiment.experiment_id],
    )
    return float(costs.item())


def _known(lineage: Lineage, contents: Sequence[str]) -> dict[str, Critique]:
    """Critiques that the workspace has, by content; refused ones if asked as often as now."""
    attempts = getattr(lineage.experiment.judge, "attempts", 1)
    known = lineage.store.query(
        _KNOWN, {"contents": list(contents), "copied": list(_COPIED), "attempts": attempts}
    )
    return {row.pop("content_id"): Critique(**row) for row in known.iter_rows(named=True)}


def _free(critique: Critique) -> Critique:
    """A critique that nothing was spent on this time."""
    return replace(critique, attempts=0, tokens=0, prompt_tokens=0, cost=0.0)


def _prefix_tokens(lineage: Lineage, rollout: Row, critique: Critique) -> int | None:
    """Leading response tokens whose text the corrected trace repeats verbatim."""
    ids = rollout.get("response_ids")
    if ids is None or not critique.valid:
        return None
    tokenizer = models.tokenizer(lineage.experiment.model.name)
    kept = len(verbatim_prefix(critique, parse_trace(rollout["text"])))

    def length(count: int) -> int:
        return len(tokenizer.decode(ids[:count], skip_special_tokens=True))

    return bisect_right(range(len(ids) + 1), kept, key=length) - 1
