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

from sdcore.config import LlmCriticConfig, ModelConfig, OracleConfig
from sdcore.contexts import Critique
from sdcore.critics.client import ChatEndpoint, EngineClient
from sdcore.critics.llm import Client, Critic
from sdcore.critics.llm import open_critic as open_named
from sdcore.critics.validation import Submission, verbatim_prefix
from sdcore.errors import ConfigError
from sdcore.keys import Key, read_key
from sdcore.rollouts import JudgedRollout
from sdcore.store.schema import TABLES
from sdcore.traces import parse_trace, response_text
from tasks.run.condition_run import ConditionRun
from tasks.run.lock import wait_for

_COPIED = (
    "first_wrong_step", "corrected", "valid", "invalid_reason", "repaired", "raw", "attempts",
    "prompt_tokens", "tokens", "cost",
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
    """The experiment's critic, for as long as the block runs; see `budget_lock`."""
    settings = run.experiment.judge or OracleConfig(kind="oracle")
    if isinstance(settings, LlmCriticConfig):
        settings = settings.asking(run.condition)
    with budget_lock(run):
        yield open_named(settings, partial(open_client, run))


@contextmanager
def budget_lock(run: ConditionRun) -> Iterator[None]:
    """Keep other processes from the experiment's paid critic, if it has a budget.

    Each would otherwise spend what is left of it by its own count. Open the client in the block: it
    reads what has been spent until then.
    """
    critic = run.experiment.judge
    if not isinstance(critic, LlmCriticConfig) or critic.max_budget is None:
        yield
        return
    folder = run.base.folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "critic.lock")
    wait_for(lock, run, "the critic's budget")
    try:
        yield
    finally:
        lock.release()


def open_client(run: ConditionRun, config: LlmCriticConfig) -> Client:
    """The critic's model; what it has cost so far counts towards its budget.

    Raises:
        ConfigError: the endpoint's key is not where it should be, or is no key.
    """
    if config.base_url is None:
        name = config.model
        return EngineClient(
            run.session.models.critic_engine(
                run.experiment.model.model_copy(update={"name": name})
            ),
            run.session.models.tokenizer(name, run.prompt_day),
            config,
        )
    stop_if_asked = run.session.interrupts.stop_if_asked
    return ChatEndpoint(config, endpoint_key(config), _spent(run), stop_if_asked)


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
        BudgetError: critic.max_budget allows no further request; what was answered is stored.
    """
    settled = _settled(run, critic, handed)
    unsettled = [each for each in handed if each.rollout_id not in settled]
    contents = {each.rollout_id: _content(critic, each) for each in unsettled}
    keyed = {contents[each.rollout_id]: each for each in unsettled}
    known = _known(run, critic, keyed)
    asked = [each for content, each in keyed.items() if content not in known]
    made = _ask(run, critic, asked, beside or {})
    answers = known | {contents[key]: critique for key, critique in made.items()}
    free = {key: _free(answers[content]) for key, content in contents.items() if key not in made}
    return settled | made | free


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


def _ask(
    run: ConditionRun, critic: Critic, handed: Sequence[Handed], beside: Mapping[str, pl.DataFrame]
) -> dict[str, Critique]:
    """New critiques of traces; each that has cost something is stored at once."""
    made: dict[str, Critique] = {}
    with run.session.panel.bar(f"critiques of {run.label}", total=len(handed)) as advance:
        for index, critique in critic.criticise([each.submission for each in handed]):
            made[handed[index].rollout_id] = critique
            if critique.raw is not None:
                row = critique_rows(run, critic, [handed[index]], made)
                run.store.append_missing(critiques=row, **beside)
                beside = {}
            failed = int(not critique.valid)
            advance(1, failed=failed, critic_tokens=critique.tokens, cost=critique.cost)
    return made


def _free_of_cost(critic: Critic, handed: Iterable[Handed]) -> bool:
    """Return whether the critic computes each critique, as the oracle does: none is looked up."""
    return all(critic.content_id(each.submission) is None for each in handed)


def _content(critic: Critic, handed: Handed) -> str:
    """Return the key of a trace's critique; the oracle's are not looked up."""
    return critic.content_id(handed.submission) or handed.rollout_id


def _spent(run: ConditionRun) -> float:
    """Return the cost of the experiment's critics so far, on critiques and in a band."""
    rows = run.store.with_superseded("critiques")
    costs = run.store.query(
        f"FROM {rows} SELECT coalesce(sum(cost), 0) + (FROM difficulties "
        "SELECT coalesce(sum(critic_cost), 0) WHERE experiment_id = $1) WHERE experiment_id = $1",
        [run.experiment.experiment_id],
    )
    return float(costs.item())


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

    An answer is judged again, by the rules of today; a refused one counts as final if the critic
    had been asked as often as now.
    """
    if _free_of_cost(critic, handed.values()):
        return {}
    rows = run.store.with_superseded("critiques")
    answers = run.store.query(
        f"SELECT content_id, raw, attempts FROM {rows} WHERE raw IS NOT NULL AND attempts > 0 "  # noqa: S608
        "AND content_id IN (SELECT unnest(?)) ORDER BY attempts",
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
