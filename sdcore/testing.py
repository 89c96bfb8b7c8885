"""A scripted engine: a public fake that answers from a table or a function, for unit tests."""

from collections.abc import Callable, Mapping, Sequence

from sdcore.config import SamplingConfig
from sdcore.engines import Completion, OnProgress, Request, silent
from sdcore.errors import EngineError

Script = Mapping[Request, Completion] | Callable[[Request], Completion]


class ScriptedEngine:
    """Answers each request as the script says, and remembers what it was asked.

    Attributes:
        requests: every request so far, in order.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[Request] = []

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        on_progress: OnProgress = silent,
    ) -> list[Completion]:
        """The scripted completions, in the order of the requests.

        Raises:
            EngineError: the script has no answer, or one longer than `sampling.max_new_tokens`.
        """
        self.requests += requests
        completions = [self._answer(request) for request in requests]
        for completion in completions:
            if len(completion.token_ids) > sampling.max_new_tokens:
                raise EngineError(
                    "scripted completion is too long",
                    got=f"{len(completion.token_ids)} tokens",
                    expected=f"at most {sampling.max_new_tokens}",
                )
            on_progress(1, len(completion.token_ids))
        return completions

    def _answer(self, request: Request) -> Completion:
        if not isinstance(self._script, Mapping):
            return self._script(request)
        if request not in self._script:
            raise EngineError("request is not in the script", got=request)
        return self._script[request]
