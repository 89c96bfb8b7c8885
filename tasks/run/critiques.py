"""Critiques for a stage. What a critic was once paid for is looked up and never asked again."""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl
from prefect.blocks.system import Secret

from sdcore.config import LlmCriticConfig, OracleConfig
from sdcore.contexts import Critique
from sdcore.critics.client import ChatEndpoint, EngineClient
from sdcore.critics.llm import Client, Critic
from sdcore.critics.llm import open_critic as open_named
from sdcore.critics.validation import Submission, verbatim_prefix
from sdcore.errors import ConfigError
from sdcore.store.schema import TABLES
from sdcore.traces import parse_trace
from tasks.run import live, progress
from tasks.run.lineage import Lineage

Row = dict[str, Any]

_COPIED = (
    "first_wrong_step", "corrected", "valid", "invalid_reason", "repaired", "raw", "attempts",
    "prompt_tokens", "tokens", "cost",
)  # fmt: skip


def open_critic(lineage: Lineage) -> Critic:
    """The experiment's critic."""
    settings = lineage.experiment.judge or OracleConfig(kind="oracle")
    return open_named(settings, partial(open_client, lineage))


def open_client(lineage: Lineage, config: LlmCriticConfig) -> Client:
    """The critic's model; what it has cost so far counts towards its budget.

    Raises:
        ConfigError: the endpoint's key is not where it should be.
    """
    if config.base_url is None:
        name = config.model
        return EngineClient(live.critic_engine(name), live.tokenizer(name), config)
    return ChatEndpoint(config, _key(config), _spent(lineage))


def _key(config: LlmCriticConfig) -> str | None:
    """The endpoint's key, from where the settings say; it stays in memory."""
    variable, block = config.api_key_env, config.api_key_block
    if not (variable or block):
        return None
    key = _secret(block) if block else os.environ.get(variable or "")
    if not key:
        raise ConfigError(
            "the critic's key is not set",
            got=f"no Prefect block secret/{block}" if block else f"no variable {variable}",
            where="critic.api_key_block" if block else "critic.api_key_env",
            fix="make the block in Prefect's UI" if block else f"export {variable}=...",
        )
    return key


def _secret(block: str) -> str | None:
    try:
        return str(Secret.load(block).get())
    except ValueError:  # there is no such block
        return None


def criticise(lineage: Lineage, critic: Critic, rollouts: Sequence[Row]) -> dict[str, Critique]:
    """The critique of each rollout, by its id; what a language model says is stored as it comes.

    Equal traces are asked about once, also those of other conditions and experiments of the
    workspace. A rollout has: rollout_id, question, text, correct, reference and solution.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: critic.max_budget allows no further request; what was answered is stored.
    """
    settled = _settled(lineage, critic, rollouts)
    open_ = [row for row in rollouts if row["rollout_id"] not in settled]
    contents = {row["rollout_id"]: _content(critic, row) for row in open_}
    keyed = {contents[row["rollout_id"]]: row for row in open_}
    known = _known(lineage, critic, keyed)
    asked = [row for content, row in keyed.items() if content not in known]
    made = _ask(lineage, critic, asked)
    found = known | {contents[key]: critique for key, critique in made.items()}
    free = {key: _free(found[content]) for key, content in contents.items() if key not in made}
    return settled | made | free


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


def _ask(lineage: Lineage, critic: Critic, rollouts: Sequence[Row]) -> dict[str, Critique]:
    """New critiques of rollouts; each that has cost something is stored at once."""
    made: dict[str, Critique] = {}
    with progress.bar(f"critiques of {lineage.label}", total=len(rollouts)) as advance:
        for index, critique in critic.criticise([_submission(row) for row in rollouts]):
            made[rollouts[index]["rollout_id"]] = critique
            if critique.raw is not None:
                row = critique_rows(lineage, critic, [rollouts[index]], made)
                lineage.store.append_missing(critiques=row)
            spent = {"critic_tokens": critique.tokens, "cost": critique.cost}
            advance(1, failed=not critique.valid, **spent)
    return made


def _content(critic: Critic, row: Row) -> str:
    """What the critique of a rollout is known by; the oracle's are not looked up."""
    return critic.content_id(_submission(row)) or str(row["rollout_id"])


def _submission(row: Row) -> Submission:
    return Submission(
        row["question"], row["text"], row["correct"], row["reference"], row["solution"]
    )


def _spent(lineage: Lineage) -> float:
    """What the critics of the experiment have cost so far, on critiques and in a band."""
    rows = lineage.store.with_superseded("critiques")
    costs = lineage.store.query(
        f"FROM {rows} SELECT coalesce(sum(cost), 0) + (FROM difficulties "
        "SELECT coalesce(sum(critic_cost), 0) WHERE experiment_id = $1) WHERE experiment_id = $1",
        [lineage.experiment.experiment_id],
    )
    return float(costs.item())


def _settled(lineage: Lineage, critic: Critic, rollouts: Sequence[Row]) -> dict[str, Critique]:
    """Critiques that these very rollouts have: a round that is repeated keeps to them."""
    if all(critic.content_id(_submission(row)) is None for row in rollouts):
        return {}  # they cost nothing
    rows = lineage.store.query(
        "SELECT * FROM critiques WHERE critique_id IN (SELECT unnest(?))",
        [[critique_id(lineage, critic, row["rollout_id"]) for row in rollouts]],
    )
    return {
        row["rollout_id"]: Critique(case=row["verdict"], **{name: row[name] for name in _COPIED})
        for row in rows.iter_rows(named=True)
    }


def _known(lineage: Lineage, critic: Critic, rollouts: Mapping[str, Row]) -> dict[str, Critique]:
    """Critiques of rollouts, keyed by content, from answers that the workspace has.

    An answer is judged anew, by the rules of today; a refused one counts as final if the critic
    had been asked as often as now.
    """
    rows = lineage.store.with_superseded("critiques")
    answers = lineage.store.query(
        f"SELECT content_id, raw, attempts FROM {rows} WHERE raw IS NOT NULL AND attempts > 0 "  # noqa: S608
        "AND content_id IN (SELECT unnest(?)) ORDER BY attempts",
        [list(rollouts)],
    )
    judged = {
        content: (critic.reread(raw, _submission(rollouts[content])), attempts)
        for content, raw, attempts in answers.iter_rows()
    }
    return {
        content: critique
        for content, (critique, attempts) in judged.items()
        if critique.valid or attempts >= critic.attempts
    }


def _free(critique: Critique) -> Critique:
    """A critique that nothing was spent on this time."""
    return replace(critique, attempts=0, tokens=0, prompt_tokens=0, cost=0.0)


def _prefix_tokens(lineage: Lineage, rollout: Row, critique: Critique) -> int | None:
    """Leading response tokens whose text the corrected trace repeats verbatim."""
    ids = rollout.get("response_ids")
    if ids is None or not critique.valid:
        return None
    tokenizer = live.tokenizer(lineage.experiment.model.name)
    kept = len(verbatim_prefix(critique, parse_trace(rollout["text"])))

    def length(count: int) -> int:
        return len(tokenizer.decode(ids[:count], skip_special_tokens=True))

    return bisect_right(range(len(ids) + 1), kept, key=length) - 1
