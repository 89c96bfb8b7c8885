"""Public fakes: an engine and a chat endpoint that answer as a test wants."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sdcore.config import SamplingConfig
from sdcore.critics.validation import Submission
from sdcore.engines import Completion, OnFinished, OnProgress, Request, Served, silent, unheard
from sdcore.errors import EngineError

Script = Mapping[Request, Completion] | Callable[[Request], Completion]
Handler = BaseHTTPRequestHandler
Behaviour = Callable[[Handler], None]
"""A server's answer to one request, whose body is read."""


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
        on_finished: OnFinished = unheard,
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
        on_finished(dict(enumerate(completions)))
        return completions

    def _answer(self, request: Request) -> Completion:
        if not isinstance(self._script, Mapping):
            return self._script(request)
        if request not in self._script:
            raise EngineError("request is not in the script", got=request)
        return self._script[request]


@contextmanager
def chat_endpoint(
    answer: Callable[[dict[str, Any]], Behaviour],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve an OpenAI-compatible endpoint on loopback.

    Args:
        answer: from the body of a request to what the server does with it, such as `say`.

    Yields:
        Its base URL, and the bodies of the requests so far with their path and headers.
    """
    asked: list[dict[str, Any]] = []

    class Endpoint(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"path": self.path, "headers": dict(self.headers)})
            answer(body)(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client had enough
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def say(text: str | None, read: int = 100, wrote: int = 50) -> Behaviour:
    """Answer with a chat completion that counts so many tokens."""
    usage = {"prompt_tokens": read, "completion_tokens": wrote}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return send(json.dumps({"choices": [choice], "usage": usage}).encode())


def send(
    content: bytes, status: int = 200, kind: str = "application/json", **headers: str
) -> Behaviour:
    """Answer with this content."""

    def behave(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return behave


def submitted(body: Mapping[str, Any]) -> Submission | None:
    """Return the submission that a request of the critic is about; None if it is about none."""
    text: str = body["messages"][0]["content"]
    _, *parts = re.split(r"(?m)^=== \w+ (.*)\n", text)
    material = dict(zip(parts[::2], parts[1::2], strict=True))
    title = next((title for title in material if title.startswith("the solver's trace")), None)
    if title is None:
        return None
    solution = next((text for title, text in material.items() if "solution" in title), None)
    answer = re.search(r"(?m)^6\. The final answer is (.*), and the new steps", text)
    return Submission(
        question=material["problem"].removesuffix("\n"),
        trace=material[title].removesuffix("\n"),
        correct=None if ";" not in title else not title.endswith("not right"),
        reference=answer and answer[1],
        solution=solution and solution.removesuffix("\n"),
    )
