"""Critiques for a stage. What a critic was once paid for is looked up and never asked again."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import polars as pl
from filelock import FileLock
from prefect.blocks.system import Secret

from sdcore.config import Limits, LlmCriticConfig, ModelConfig, OracleConfig
from sdcore.contexts import Critique
from sdcore.critics.budget import Budget, Paid
from sdcore.critics.client import ChatEndpoint, EngineClient
from sdcore.critics.llm import Ask, Client, Critic
from sdcore.critics.llm import open_critic as open_named
from sdcore.critics.validation import Submission, verbatim_prefix
from sdcore.errors import ConfigError
from sdcore.keys import Key, read_key
from sdcore.rollouts import JudgedRollout
from sdcore.store.schema import TABLES
from sdcore.traces import parse_trace, response_text
from tasks.run.condition_run import ConditionRun
from tasks.run.lock import wait_for

_COUNTS = ("attempts", "prompt_tokens", "tokens", "cost")
_COPIED = (
    "writer", "first_wrong_step", "corrected", "valid", "invalid_reason", "repaired", "raw",
    *_COUNTS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Handed:
    """A trace that goes to the critic, by the id that its critique gets.

    `response_ids` are the trace's tokens; None where it was not sampled here.
    """

    rollout_id: str
    submission: Submission
    response_ids: Sequence[int] | None = None

    @classmethod
    def of(cls, judged: JudgedRollout) -> Self:
        """The trace of a rollout."""
        rollout, problem = judged.rollout, judged.problem
        submission = Submission(
            problem.question, rollout.text, rollout.correct, problem.reference, problem.solution
        )
        return cls(rollout.rollout_id, submission, rollout.response_ids)


@contextmanager
def open_critic(run: ConditionRun) -> Iterator[Critic]:
    """The experiment's critic, for as long as the block runs; see `critic_budget`."""
    settings = (run.experiment.judge or OracleConfig(kind="oracle")).asking(run.condition)
    with critic_budget(run) as budget:
        yield open_named(settings, partial(open_client, run, budget))


@contextmanager
def critic_budget(run: ConditionRun) -> Iterator[Budget]:
    """What may be spent on the experiment's critic, by this process alone while the block runs.

    Several processes would each spend what is left of it by their own count.
    """
    limits = run.experiment.judge.limits if run.experiment.judge else Limits()
    if limits == Limits():
        yield Budget()
        return
    folder = run.base.folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "critic.lock")
    wait_for(lock, run, "the critic's budget")
    try:
        yield Budget(limits, _spent(run))
    finally:
        lock.release()


def open_client(run: ConditionRun, budget: Budget, config: LlmCriticConfig) -> Client:
    """A model of the critic, which may spend what the budget has left.

    Raises:
        ConfigError: the endpoint's key is not where it should be, or is no key.
    """
    if config.base_url is None:
        name, trained = config.model, run.experiment.model
        model = ModelConfig(name=name, dtype=trained.dtype, device=trained.device)
        return EngineClient(
            run.session.models.critic_engine(run, model),
            run.session.models.tokenizer(name, run.prompt_day),
            config,
            budget,
        )
    stop_if_asked = run.session.interrupts.stop_if_asked
    return ChatEndpoint(config, endpoint_key(config), budget, stop_if_asked)


def endpoint_key(config: LlmCriticConfig) -> Key | None:
    """The endpoint's key, from where the settings say; None if they name none.

    It stays in memory.

    Raises:
        ConfigError: it is not there, or is no key.
    """
    variable, block = config.api_key_env, config.api_key_block
    if not (variable or block):
        return None
    text = secret_block(block) if block else os.environ.get(variable or "")
    if not text:
        raise ConfigError(
            "the critic's key is not set",
            got=f"no Prefect block secret/{block}" if block else f"no variable {variable}",
            where="critic.api_key_block" if block else "critic.api_key_env",
            fix="make the block in Prefect's UI" if block else f"export {variable}=...",
        )
    return read_key(text, f"Prefect block secret/{block}" if block else f"${variable}")


def secret_block(block: str) -> str | None:
    """The text of a Prefect Secret block; None if there is no such block."""
    try:
        secret: Any = Secret.load(block)  # its type allows for a coroutine, in an event loop
        return str(secret.get())
    except ValueError:
        return None


def criticise(
    run: ConditionRun,
    critic: Critic,
    handed: Sequence[Handed],
    beside: Mapping[str, pl.DataFrame] | None = None,
) -> dict[str, Critique]:
    """The critique of each trace, by its id; what a language model says is stored as it comes.

    Equal traces are asked about once, also those of other conditions and experiments of the
    workspace.

    Args:
        run: the condition and seed that it is for.
        critic: to be asked.
        handed: the traces.
        beside: rows to store with the first paid critique: the rollouts that it speaks of.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: the critic's limits allow no further request; what was answered is stored.
    """
    settled = _settled(run, critic, handed)
    unsettled = [each for each in handed if each.rollout_id not in settled]
    made: dict[str, Critique] = {}
    kept_beside = dict(beside or {})
    ask = _remembering(run, critic, unsettled, kept_beside)
    with run.session.panel.bar(f"critiques of {run.label}", total=len(unsettled)) as advance:
        for index, critique in critic.settle(range(len(unsettled)), ask):
            made[unsettled[index].rollout_id] = critique
            if critique.raw is not None and critique.attempts:
                row = critique_rows(run, critic, [unsettled[index]], made)
                run.store.append_missing(critiques=row, **kept_beside)
                kept_beside.clear()
            failed, cached = int(not critique.valid), int(not critique.attempts)
            tokens, cost = critique.tokens, critique.cost
            advance(1, failed=failed, cached=cached, critic_tokens=tokens, cost=cost)
    return settled | made


def critique_rows(
    run: ConditionRun,
    critic: Critic,
    handed: Sequence[Handed],
    critiques: Mapping[str, Critique],
) -> pl.DataFrame:
    """The critiques of traces as rows of their table."""
    rows: list[dict[str, object]] = []
    for each in handed:
        critique = critiques[each.rollout_id]
        rows.append(
            run.columns
            | {
                "critique_id": critique_id(run, critic, each.rollout_id),
                "rollout_id": each.rollout_id,
                "critic": critic.name,
                "content_id": critic.content_id(each.submission),
                "verdict": critique.case,
                "prefix_tokens": _prefix_tokens(run, each, critique),
            }
            | {name: getattr(critique, name) for name in _COPIED}
        )
    return TABLES["critiques"].frame(rows)


def stored_critiques(run: ConditionRun, rollout_ids: Sequence[str]) -> dict[str, Critique]:
    """The stored critiques of a run's rollouts, by rollout id."""
    return _critiques(run.store.rows("critiques", rollout_id=list(rollout_ids), **run.columns))


def critique_id(run: ConditionRun, critic: Critic, rollout_id: str) -> str:
    """Key of a critic's critique of a rollout."""
    return run.key("critique", rollout_id, critic.name)


def _remembering(
    run: ConditionRun, critic: Critic, handed: Sequence[Handed], beside: dict[str, pl.DataFrame]
) -> Ask:
    """Ask about traces by their index, each content once, unless the workspace has an answer.

    What a model of a cascade was paid for is stored as it comes, before another one is asked.
    """

    def ask(member: Critic, indices: Sequence[int]) -> Iterator[tuple[int, Critique]]:
        alike: dict[str, list[int]] = {}
        for index in indices:
            alike.setdefault(_content(member, handed[index]), []).append(index)
        known = _known(run, member, {key: handed[same[0]] for key, same in alike.items()})
        paid = {} if member is critic else _paid(run, member, [handed[i] for i in indices])
        for content, critique in known.items():
            for index in alike[content]:
                counts = paid.get(handed[index].rollout_id, {})
                yield index, replace(_free(critique), writer=member.name, **counts)
        new = [same for content, same in alike.items() if content not in known]
        asked = [handed[same[0]] for same in new]
        for place, critique in member.criticise([each.submission for each in asked]):
            if member is not critic and critique.raw is not None:
                answer = _answer_row(run, member, asked[place], critique)
                run.store.append_missing(critic_answers=answer, **beside)
                beside.clear()
            first, *others = new[place]
            written = replace(critique, writer=member.name)
            yield first, written
            for index in others:
                yield index, _free(written)

    return ask


def _answer_id(run: ConditionRun, member: Critic, handed: Handed) -> str:
    content = member.content_id(handed.submission)
    return run.key("answer", handed.rollout_id, member.name, content)


def _answer_row(
    run: ConditionRun, member: Critic, handed: Handed, critique: Critique
) -> pl.DataFrame:
    copied = ("valid", "invalid_reason", "raw", *_COUNTS)
    row = run.columns | {
        "answer_id": _answer_id(run, member, handed),
        "rollout_id": handed.rollout_id,
        "critic": member.name,
        "content_id": _content(member, handed),
    }
    return TABLES["critic_answers"].frame(
        [row | {name: getattr(critique, name) for name in copied}]
    )


def _paid(run: ConditionRun, member: Critic, handed: Sequence[Handed]) -> dict[str, dict[str, Any]]:
    """What was paid to a model of a cascade for its answers about these very rollouts, by id."""
    wanted = [_answer_id(run, member, each) for each in handed]
    rows = run.store.rows("critic_answers", answer_id=wanted)
    return {
        row["rollout_id"]: {name: row[name] for name in _COUNTS}
        for row in rows.iter_rows(named=True)
    }


def _free_of_cost(critic: Critic, handed: Iterable[Handed]) -> bool:
    """Return whether the critic computes each critique, as the oracle does: none is looked up."""
    return all(critic.content_id(each.submission) is None for each in handed)


def _content(critic: Critic, handed: Handed) -> str:
    """Return the key of a trace's critique; the oracle's are not looked up."""
    return critic.content_id(handed.submission) or handed.rollout_id


def _spent(run: ConditionRun) -> Paid:
    """Return what the experiment's critic has taken so far, for critiques and in a band.

    The critiques of a cascade count what its models were paid for, in `critic_answers`.
    """
    rows = run.store.with_superseded("critiques")
    found = run.store.query(
        f"""
        FROM (
            SELECT cost, prompt_tokens + tokens AS tokens FROM {rows}
            WHERE experiment_id = $id AND writer = critic
            UNION ALL
            SELECT cost, prompt_tokens + tokens FROM critic_answers WHERE experiment_id = $id
            UNION ALL
            SELECT critic_cost, critic_tokens FROM difficulties WHERE experiment_id = $id
        )
        SELECT coalesce(sum(cost), 0)::DOUBLE AS cost, coalesce(sum(tokens), 0)::BIGINT AS tokens
        """,  # noqa: S608
        {"id": run.experiment.experiment_id},
    )
    return Paid(*found.row(0))


def _settled(run: ConditionRun, critic: Critic, handed: Sequence[Handed]) -> dict[str, Critique]:
    """Critiques that these very rollouts have: a round that is repeated keeps to them."""
    if _free_of_cost(critic, handed):
        return {}
    wanted = [critique_id(run, critic, each.rollout_id) for each in handed]
    return _critiques(run.store.rows("critiques", critique_id=wanted))


def _critiques(rows: pl.DataFrame) -> dict[str, Critique]:
    return {
        row["rollout_id"]: Critique(case=row["verdict"], **{name: row[name] for name in _COPIED})
        for row in rows.iter_rows(named=True)
    }


def _known(run: ConditionRun, critic: Critic, handed: Mapping[str, Handed]) -> dict[str, Critique]:
    """Critiques of rollouts, keyed by content, from answers that the workspace has.

    An answer is judged again, by the present rules; a refused one counts as final if the critic
    had been asked as often as now.
    """
    if _free_of_cost(critic, handed.values()):
        return {}
    rows = run.store.with_superseded("critiques")
    answers = run.store.query(
        f"FROM (SELECT content_id, raw, attempts FROM {rows} WHERE raw IS NOT NULL "  # noqa: S608
        "UNION ALL SELECT content_id, raw, attempts FROM critic_answers) "
        "WHERE attempts > 0 AND content_id IN (SELECT unnest(?)) ORDER BY attempts",
        [list(handed)],
    )
    judged = {
        content: (critic.reread(raw, handed[content].submission), attempts)
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


def _prefix_tokens(run: ConditionRun, handed: Handed, critique: Critique) -> int | None:
    """Leading response tokens whose text the corrected trace repeats verbatim."""
    ids = handed.response_ids
    if ids is None or not critique.valid:
        return None
    tokenizer = run.tokenizer
    kept = len(verbatim_prefix(critique, parse_trace(handed.submission.trace)))

    def length(count: int) -> int:
        return len(response_text(tokenizer, ids[:count]))

    return bisect_right(range(len(ids) + 1), kept, key=length) - 1
