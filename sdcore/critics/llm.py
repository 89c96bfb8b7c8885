"""The protocol of a critic, the oracle as one, and the dialogue with a language model.

A language model is asked; its answer is parsed, repaired and validated. An unusable critique is
asked for again with the reason, a bounded number of times. Which step is the first wrong one is
the model's claim; only the oracle knows it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import chain
from typing import Protocol

from sdcore.config import CRITICS, CriticSettings, LlmCriticConfig
from sdcore.contexts import Critique
from sdcore.critics.oracle import critique as oracle_critique
from sdcore.critics.parsing import read_answer, without_thinking
from sdcore.critics.repair import repair
from sdcore.critics.validation import LENGTHS, Submission, infidelity, misalignment
from sdcore.errors import DataError, EngineError, PluginError
from sdcore.jinja_sandbox import render
from sdcore.models.prompts import Message
from sdcore.registry import loaded
from sdcore.store.schema import content_key

ROOM = 4000  # characters that a corrected trace may have on top of LENGTHS times the trace's
LIVENESS_PROMPT = 'Answer with {"case": "A"}.'
SHOWN = 8000  # characters of an unusable answer that are shown when asking again

_TEMPLATES = files("sdcore.critics")
PROMPT = (_TEMPLATES / "critic.jinja").read_text("utf-8")
AGAIN = (_TEMPLATES / "critic-again.jinja").read_text("utf-8")


@dataclass(frozen=True)
class Reply:
    """An answer of a language model; if none came, `text` is None and `failure` says why."""

    text: str | None
    prompt_tokens: int = 0
    tokens: int = 0
    cost: float = 0.0
    failure: str | None = None
    passing: bool = False  # the failure may pass: it is the server's, not the request's


GoOn = Callable[[int, Reply], list[Message] | None]
"""From the index of a conversation and a reply to the messages that it goes on with, if any."""


def at_an_end(index: int, reply: Reply) -> None:
    """End every conversation with its first reply."""


class Client(Protocol):
    """A connection that carries conversations to a language model."""

    def ask(
        self, conversations: Iterable[list[Message]], go_on: GoOn = at_an_end
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the index of a conversation and its last reply, in the order of arrival.

        A conversation goes on as soon as its reply is there, whatever the others wait for. They
        may be still to come: then another thread may be the one that takes them.

        Raises:
            EngineError: the model cannot be asked at all.
            BudgetError: the next request could cost more than may be spent.
        """
        ...


class Critic(Protocol):
    """Criticise traces.

    Attributes:
        name: what the tables call it.
        attempts: how often it is asked about a trace at most.
    """

    name: str
    attempts: int = 1

    def content_id(self, submission: Submission) -> str | None:
        """Return a key of all that decides the critique; None if making it again costs nothing.

        A critique with a key is stored at once and is not asked for again in this workspace.
        """
        return None

    def reread(self, raw: str, submission: Submission) -> Critique:
        """Return the critique in a stored answer, `Critique.raw`, by the present rules."""
        raise NotImplementedError

    def criticise(self, submissions: Iterable[Submission]) -> Iterator[tuple[int, Critique]]:
        """Yield the index of a submission and its critique, in the order of arrival.

        A critic from outside gets a list. One of sdcore may be given submissions that are still to
        come, and judges those that are there meanwhile.
        """
        ...

    def settle(
        self, batches: Iterable[Sequence[int]], ask: "Ask"
    ) -> Iterator[tuple[int, Critique]]:
        """Yield index and critique, as `criticise`, of submissions that `ask` knows by index.

        A critic that is made of others passes them on to `ask`, which may have an answer of theirs
        already and stores each new one.
        """
        return ask(self, batches)


Ask = Callable[[Critic, Iterable[Sequence[int]]], Iterator[tuple[int, Critique]]]
"""From a critic and indices of submissions, batch by batch as they come, to these indices and its
critiques."""


def asked_directly(submissions: Sequence[Submission]) -> Ask:
    """Return an `Ask` that asks the critic about each submission, and stores nothing."""

    def ask(critic: Critic, batches: Iterable[Sequence[int]]) -> Iterator[tuple[int, Critique]]:
        asked: list[int] = []

        def coming() -> Iterator[Submission]:
            for index in chain.from_iterable(batches):
                asked.append(index)
                yield submissions[index]

        for place, critique in critic.criticise(coming()):
            yield asked[place], replace(critique, writer=critic.name)

    return ask


OpenClient = Callable[[LlmCriticConfig], Client]
"""Open the language model that the settings of a critic name."""


def open_critic(settings: CriticSettings, open_client: OpenClient) -> Critic:
    """Return the critic that the settings name.

    Args:
        settings: the section `critic`.
        open_client: opens a language model; what it has cost so far counts.
    """
    made: Critic = loaded(CRITICS[settings.kind].implementation)(settings, open_client)
    code = CRITICS.digest(settings.kind)
    return made if code is None else _Outside(made, settings.kind, code)


def open_llm(settings: LlmCriticConfig, open_client: OpenClient) -> "LlmCritic":
    """Return the language model as critic."""
    return LlmCritic(settings, open_client(settings))


class _Outside(Critic):
    """A critic from outside, whose answers are checked, and known by its source code too."""

    def __init__(self, critic: Critic, kind: str, code: str) -> None:
        self.name, self.attempts = critic.name, critic.attempts
        self._critic, self._kind, self._code = critic, kind, code

    def content_id(self, submission: Submission) -> str | None:
        content = self._critic.content_id(submission)
        return None if content is None else content_key("plugin", self._code, content)

    def reread(self, raw: str, submission: Submission) -> Critique:
        return self._critic.reread(raw, submission)

    def criticise(self, submissions: Iterable[Submission]) -> Iterator[tuple[int, Critique]]:
        given = [*submissions]
        left = {*range(len(given))}
        with CRITICS.running(self._kind):
            for index, critique in self._critic.criticise(given):
                if index not in left or not isinstance(critique, Critique):
                    raise self._misfit(f"{index!r} and a {type(critique).__name__}", len(given))
                left.remove(index)
                yield index, critique
        if left:
            raise self._misfit(f"none for {len(left)} of them", len(given))

    def _misfit(self, got: str, count: int) -> PluginError:
        return PluginError(
            "a critic from outside does not answer as it must",
            got=got,
            expected=f"each index from 0 to {count - 1} once, with a sdcore.contexts.Critique",
            where=self._kind,
        )


class OracleCritic(Critic):
    """The exact critic of the generated families."""

    name = "oracle"

    def __init__(self, settings: object = None, open_client: object = None) -> None:
        pass

    def criticise(self, submissions: Iterable[Submission]) -> Iterator[tuple[int, Critique]]:
        """Yield critiques in the order of the submissions.

        Raises:
            DataError: a question is of no generated family, or its reference is wrong.
        """
        for index, each in enumerate(submissions):
            yield index, oracle_critique(each.question, each.reference or "", each.trace)


class LlmCritic(Critic):
    """A language model as critic.

    Attributes:
        name: the model's.
        attempts: times that it is asked until a critique is valid.
    """

    def __init__(self, config: LlmCriticConfig, client: Client) -> None:
        self.name, self.attempts = config.model, config.attempts
        self._config, self._client = config, client
        self._template = PROMPT if config.template is None else config.template

    def content_id(self, submission: Submission) -> str | None:
        """Return the hash of the prompts and of the settings that decide the answer."""
        settings = self._config.model_dump(
            include={"model", "structured", "temperature", "max_tokens"}
        )
        return content_key("critique", settings, prompt(submission, self._template), AGAIN)

    def reread(self, raw: str, submission: Submission) -> Critique:
        """Judge a stored answer."""
        return judge(raw, submission)

    def criticise(self, submissions: Iterable[Submission]) -> Iterator[tuple[int, Critique]]:
        """Yield critiques as they are settled: valid, refused for the last time, or unanswered.

        Raises:
            EngineError: the critic cannot be asked, or answers neither the submissions nor
                the liveness prompt.
            BudgetError: the next request could cost more than may be spent.
        """
        dialogues: list[_Dialogue] = []

        def opened() -> Iterator[list[Message]]:
            for submission in submissions:
                dialogues.append(_Dialogue(submission, self._template))
                yield dialogues[-1].messages

        def go_on(index: int, reply: Reply) -> list[Message] | None:
            dialogue = dialogues[index]
            dialogue.hear(reply)
            return None if dialogue.settled(self.attempts) else dialogue.messages

        failures: list[str | None] = []  # of the server
        for index, reply in self._client.ask(opened(), go_on):
            failures += [reply.failure] if reply.passing else []
            yield index, dialogues[index].critique
        if dialogues and len(failures) == len(dialogues):
            self._require_answer(failures[0])

    def _require_answer(self, failure: str | None) -> None:
        """Send a liveness prompt: a dead server is an error, one that fails on a submission is not.

        Otherwise a run would never get past a trace over which the critic thinks for too long.
        """
        liveness: list[Message] = [{"role": "user", "content": LIVENESS_PROMPT}]
        if any(reply.passing for _, reply in self._client.ask([liveness])):
            raise EngineError(
                "the critic does not answer",
                got=failure,
                where=", ".join(self._config.addresses) or self.name,
                fix="check that its server is up, then repeat the command",
            )


class _Dialogue:
    """The conversation about one submission, and its latest critique."""

    def __init__(self, submission: Submission, template: str) -> None:
        self._submission = submission
        self.messages: list[Message] = [{"role": "user", "content": prompt(submission, template)}]
        self.critique = Critique(None, None, None, valid=False, attempts=0)

    def hear(self, reply: Reply) -> None:
        """Judge a reply; where it is unusable, continue the conversation with the reason."""
        before = self.critique
        if reply.text is None:
            found = Critique(None, None, None, False, f"no answer: {reply.failure}")
        else:
            found = judge(reply.text, self._submission)
            again = render(AGAIN, reason=found.invalid_reason)
            said = without_thinking(reply.text)[:SHOWN]
            self.messages = [
                *self.messages[:1],
                {"role": "assistant", "content": said},
                {"role": "user", "content": again},
            ]
        self.critique = replace(
            found,
            attempts=before.attempts + 1,
            tokens=before.tokens + reply.tokens,
            prompt_tokens=before.prompt_tokens + reply.prompt_tokens,
            cost=before.cost + reply.cost,
        )

    def settled(self, attempts: int) -> bool:
        """Return whether asking again is useless or not allowed."""
        critique = self.critique
        return critique.valid or critique.raw is None or critique.attempts >= attempts


def prompt(submission: Submission, template: str = PROMPT) -> str:
    """Return the prompt; the marks around the material occur nowhere in the material.

    Raises:
        ConfigError: the template does not render.
    """
    material = [submission.question, submission.solution, submission.trace]
    return render(
        template,
        mark=f"=== {content_key(*material)[:12]}",
        question=submission.question,
        solution=submission.solution,
        answer=submission.reference,
        trace=submission.trace,
        correct=submission.correct,
    )


def judge(text: str, submission: Submission) -> Critique:
    """Turn a language model's answer into a critique, repaired where it is nearly right.

    An invalid critique keeps the critic's claims but no corrected trace: nothing can train on it.
    """
    try:
        critique = read_answer(text)
    except DataError as error:
        return Critique(None, None, None, False, error.what, raw=text)
    reason = _oversized(critique, submission)
    if reason is None:
        critique = repair(critique, submission)
        reason = misalignment(critique, submission) or infidelity(critique, submission)
    if reason is None:
        return critique
    return replace(critique, corrected=None, valid=False, invalid_reason=reason)


def _oversized(critique: Critique, submission: Submission) -> str | None:
    length, limit = len(critique.corrected or ""), LENGTHS * len(submission.trace) + ROOM
    return f"the corrected trace has {length} characters" if length > limit else None
