"""Public fakes for unit tests: an engine that answers from a table or a function."""

from collections.abc import Callable, Mapping, Sequence

from sdcore.config import SamplingConfig
from sdcore.engines import Completion, OnProgress, Request, Served, silent
from sdcore.errors import EngineError

Script = Mapping[Request, Completion] | Callable[[Request], Completion]


class ScriptedEngine:
    """Answer each request as the script says, and record what was asked.

    Attributes:
        requests: every request so far, in order.
        loaded: every policy that was loaded so far, in order.
    """

    reads_folders = False
    update_share: float | None = None

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[Request] = []
        self.loaded: list[Served] = []

    def load(self, policy: Served) -> None:
        """Record the policy; the script answers for all alike."""
        self.loaded.append(policy)

    def close(self) -> None:
        """Hold nothing that must be freed."""

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        on_progress: OnProgress = silent,
    ) -> list[Completion]:
        """Return the scripted completions, in the order of the requests.

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
