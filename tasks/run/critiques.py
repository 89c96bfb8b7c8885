"""Critiques for a stage. What a critic was once paid for is looked up and never asked again."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from sdcore.grading.answers import grade_many
from sdcore.grading.graders import DEFAULT_GRADER
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
    def of(cls, judged: Sequence[JudgedRollout], grader: str) -> list[Self]:
        """The traces of rollouts that a grader has given rewards.

        The critic is told whether the final answer is right. A grader of the user's own may judge
        something else, so that under it the answers are compared with the references.
        """
        rollouts = [each.rollout for each in judged]
        right = [rollout.correct for rollout in rollouts]
        if grader != DEFAULT_GRADER:
            references = [each.problem.reference for each in judged]
            grades = grade_many([rollout.answer for rollout in rollouts], references)
            right = [grade.correct for grade in grades]
        return [
            cls(each.rollout.rollout_id, _submission(each, correct), each.rollout.response_ids)
            for each, correct in zip(judged, right, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Batch:
    """Traces that come together, and rows to store with the first critique that is paid for.

    These are the rollouts that the critiques speak of.
    """

    handed: Sequence[Handed]
    beside: Mapping[str, pl.DataFrame] = field(default_factory=dict)


def _submission(judged: JudgedRollout, correct: bool) -> Submission:
    problem = judged.problem
    return Submission(
        problem.question, judged.rollout.text, correct, problem.reference, problem.solution
    )


class _Traces:
    """Traces by index, in the order of arrival."""

    def __init__(self) -> None:
        self.handed: list[Handed] = []
        self._beside: list[dict[str, pl.DataFrame]] = []  # by index; a batch shares one

    def add(self, batch: Batch) -> range:
        """Take in the traces of a batch, and return their indices."""
        before = len(self.handed)
        self._beside += [dict(batch.beside)] * len(batch.handed)
        self.handed += batch.handed
        return range(before, len(self.handed))

    def beside(self, index: int) -> dict[str, pl.DataFrame]:
        """The rows that are to be stored with a critique, for the first one of its batch."""
        rows = dict(self._beside[index])
        self._beside[index].clear()
        return rows


@contextmanager
def open_critic(run: ConditionRun) -> Iterator[Critic]:
    """The experiment's critic, for as long as the block runs; see `critic_budget`."""
    settings = (run.experiment.judge or OracleConfig(kind="oracle")).asking(run.condition)
    with critic_budget(run) as budget:
        yield open_named(settings, partial(open_client, run, budget))


@contextmanager
def critic_budget(run: ConditionRun) -> Iterator[Budget]:
    """Give the budget of the experiment's critic, to this process alone while the block runs.

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


def criticise(run: ConditionRun, critic: Critic, handed: Sequence[Handed]) -> dict[str, Critique]:
    """The critique of each trace, by its id; see `criticise_arriving`."""
    return criticise_arriving(run, critic, [Batch(handed)], len(handed))


def criticise_arriving(
    run: ConditionRun, critic: Critic, arriving: Iterable[Batch], total: int
) -> dict[str, Critique]:
    """The critique of each trace, by its id; what a language model says is stored as it comes.

    Equal traces are asked about once, also those of other conditions and experiments of the
    workspace.

    Args:
        run: the condition and seed that it is for.
        critic: to be asked.
        arriving: the traces. Where they are still to come, the critic is asked meanwhile about
            those that are there, if it can be.
        total: how many there are in the end.

    Raises:
        EngineError: the critic cannot be asked, or answers nothing.
        BudgetError: the critic's limits allow no further request; what was answered is stored.
    """
    settled: dict[str, Critique] = {}
    unsettled = _Traces()
    made: dict[str, Critique] = {}

    def batches() -> Iterator[Sequence[int]]:
        for batch in arriving:
            known = _settled(run, critic, batch.handed)
            settled.update(known)
            new = [each for each in batch.handed if each.rollout_id not in known]
            yield unsettled.add(replace(batch, handed=new))

    ask = _remembering(run, critic, unsettled)
    with run.session.panel.bar(f"critiques of {run.label}", total=total) as advance:
        for index, critique in critic.settle(batches(), ask):
            handed = unsettled.handed[index]
            made[handed.rollout_id] = critique
            if critique.raw is not None and critique.attempts:
                row = critique_rows(run, critic, [handed], made)
                run.store.append_missing(critiques=row, **unsettled.beside(index))
            failed, cached = int(not critique.valid), int(not critique.attempts)
            tokens, cost = critique.tokens, critique.cost
            advance(1, failed=failed, cached=cached, critic_tokens=tokens, cost=cost)
        advance(len(settled), cached=len(settled))
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


def _remembering(run: ConditionRun, critic: Critic, traces: _Traces) -> Ask:
    """Ask about traces by their index, each content once, unless the workspace has an answer.

    What a model of a cascade was paid for is stored as it comes, before another one is asked.
    """

    def ask(member: Critic, batches: Iterable[Sequence[int]]) -> Iterator[tuple[int, Critique]]:
        asked: list[int] = []
        alike: list[tuple[int, str]] = []  # traces whose critique costs nothing, with its content
        known: dict[str, Critique] = {}
        paid: dict[str, dict[str, Any]] = {}  # to a model of a cascade, in an earlier process

        def submissions() -> Iterator[Submission]:
            met: set[str] = set()
            for batch in batches:
                handed = {index: traces.handed[index] for index in batch}
                contents = {index: _content(member, each) for index, each in handed.items()}
                first = {content: handed[index] for index, content in reversed(contents.items())}
                new = {content: first[content] for content in first.keys() - met}
                known.update(_known(run, member, new))
                if member is not critic:
                    paid.update(_paid(run, member, [*handed.values()]))
                for index, content in contents.items():
                    if content in met or content in known:
                        alike.append((index, content))
                    else:
                        asked.append(index)
                        yield handed[index].submission
                    met.add(content)

        for place, critique in member.criticise(submissions()):
            index = asked[place]
            if member is not critic and critique.raw is not None:
                answer = _answer_row(run, member, traces.handed[index], critique)
                run.store.append_missing(critic_answers=answer, **traces.beside(index))
            written = replace(critique, writer=member.name)
            known[_content(member, traces.handed[index])] = written
            yield index, written
        for index, content in alike:
            counts = paid.get(traces.handed[index].rollout_id, {})
            yield index, replace(_free(known[content]), writer=member.name, **counts)

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
    """Return what was paid to a model of a cascade for its answers about these rollouts, by id."""
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
