"""A cascade of two critics: a small one judges each trace, a large one where validation refuses."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

from sdcore.config import CascadeConfig
from sdcore.contexts import Critique
from sdcore.critics.llm import Ask, Critic, OpenClient, asked_directly, open_critic
from sdcore.critics.validation import Submission
from sdcore.store.schema import content_key

_Settled = tuple[int, Critique]


def open_cascade(settings: CascadeConfig, open_client: OpenClient) -> "Cascade":
    """Return the cascade of two language models; their clients share what may be spent."""
    small, large = (open_critic(each, open_client) for each in settings.models)
    return Cascade(small, large)


class Cascade(Critic):
    """Two critics, of which the second judges what the first cannot.

    Attributes:
        name: of both.
        attempts: how often they are asked about a trace at most, together.
    """

    def __init__(self, small: Critic, large: Critic) -> None:
        self.name = f"{small.name}, then {large.name}"
        self.attempts = small.attempts + large.attempts
        self._small, self._large = small, large

    def content_id(self, submission: Submission) -> str | None:
        """Return a key of all that decides the answers of both."""
        both = [critic.content_id(submission) for critic in (self._small, self._large)]
        return content_key("cascade", *both)

    def reread(self, raw: str, submission: Submission) -> Critique:
        """Return the critique in a stored answer by the rules of the large critic."""
        return self._large.reread(raw, submission)

    def criticise(self, submissions: Iterable[Submission]) -> Iterator[tuple[int, Critique]]:
        """Yield critiques as they are settled: those by the small critic first.

        Raises:
            EngineError: a critic cannot be asked, or answers nothing.
            BudgetError: the next request could cost more than may be spent.
        """
        there = [*submissions]
        yield from self.settle([range(len(there))], asked_directly(there))

    def settle(self, batches: Iterable[Sequence[int]], ask: Ask) -> Iterator[tuple[int, Critique]]:
        """Yield the small critic's valid critiques, then the large critic's of all the others.

        The large one is asked about a trace as soon as the small one's critique of it is refused,
        in a thread of its own. Its critique counts what the refused answers took, too.
        """
        refused: dict[int, Critique] = {}
        left, settled = SimpleQueue[Sequence[int] | None](), SimpleQueue[_Settled | None]()

        def ask_large() -> None:
            try:
                for index, critique in ask(self._large, iter(left.get, None)):
                    settled.put((index, _with_cost_of(refused[index], critique)))
            finally:
                settled.put(None)

        with ThreadPoolExecutor(1) as beside:
            asked = beside.submit(ask_large)
            try:
                for index, critique in ask(self._small, batches):
                    if critique.valid:
                        yield index, critique
                    else:
                        refused[index] = critique
                        left.put([index])
            finally:
                left.put(None)
            yield from iter(settled.get, None)
            asked.result()


def _with_cost_of(before: Critique, critique: Critique) -> Critique:
    return replace(
        critique,
        attempts=before.attempts + critique.attempts,
        tokens=before.tokens + critique.tokens,
        prompt_tokens=before.prompt_tokens + critique.prompt_tokens,
        cost=before.cost + critique.cost,
    )
