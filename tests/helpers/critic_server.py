"""A real HTTP server that speaks, or fails to speak, as an OpenAI-compatible endpoint."""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sdcore.critics.llm import OracleCritic
from sdcore.critics.validation import Submission
from sdcore.grading.answers import grade
from sdcore.problems.arithmetic import parse_question
from sdcore.traces import parse_trace

Handler = BaseHTTPRequestHandler
Behaviour = Callable[[Handler], None]
CLOSING = threading.Event()


def send(content: bytes, status: int = 200, kind: str = "application/json", **headers: str):
    def behave(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return behave


def say(text: str | None, read: int = 100, wrote: int = 50) -> Behaviour:
    usage = {"prompt_tokens": read, "completion_tokens": wrote}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return send(json.dumps({"choices": [choice], "usage": usage}).encode())


def _answer(case: str, step: int | None, corrected: str) -> str:
    return json.dumps({"case": case, "first_wrong_step": step, "corrected": corrected})


def critique(case: str, step: int | None, corrected: str) -> Behaviour:
    return say(_answer(case, step, corrected))


def submitted(body: dict[str, Any]) -> Submission:
    """The submission that a critic's prompt is about; its question is of the arithmetic family."""
    text = body["messages"][0]["content"]
    _, question, solution, trace, _ = re.split(r"(?m)^=== \w+ .*\n", text)
    answer = str(parse_question(question.strip()).answer)
    correct = grade(parse_trace(trace.strip()).answer, answer).correct
    return Submission(question.strip(), trace.removesuffix("\n"), correct, answer, solution.strip())


def exact_text(body: dict[str, Any]) -> str:
    """The answer to a critic's prompt that the oracle would give."""
    ((_, found),) = OracleCritic().criticise([submitted(body)])
    return _answer(found.case, found.first_wrong_step, found.corrected)


def exact(body: dict[str, Any]) -> Behaviour:
    """Answer a critic's prompt as the oracle does."""
    return say(exact_text(body))


def drop(handler: Handler) -> None:
    handler.close_connection = True  # not a byte is sent


def stall(handler: Handler) -> None:
    CLOSING.wait(30)


def break_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


def drip_headers(handler: Handler) -> None:
    """Headers without end, a byte at a time."""
    handler.send_response(200)
    handler.flush_headers()
    handler.wfile.write(b"X-Slow: ")
    while not CLOSING.wait(0.02):
        handler.wfile.write(b"a")


def endless_headers(handler: Handler) -> None:
    """Headers without end, as fast as they are read."""
    handler.send_response(200)
    handler.flush_headers()
    while not CLOSING.is_set():
        handler.wfile.write(b"X-More: yes\r\n" * 1000)


def drip(handler: Handler) -> None:
    """An answer without end, a byte at a time: no single read takes long."""
    handler.send_response(200)
    handler.end_headers()
    while not CLOSING.wait(0.02):
        handler.wfile.write(b" ")


def echo(handler: Handler) -> None:
    """What a debugging proxy does: the request's headers come back, the key with them."""
    send(str(handler.headers).encode(), 400)(handler)


def quote_key(encode: Callable[[str], str]) -> Behaviour:
    """An answer of the right form that quotes the request's key in some encoding."""

    def behave(handler: Handler) -> None:
        content = f"My key is {encode(handler.headers['Authorization'])}!"
        text = json.dumps({"choices": [{"message": {"content": "MARK"}}]})
        send(text.replace("MARK", content).encode())(handler)

    return behave


ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "URL": lambda text: "".join(f"%{ord(c):02X}" for c in text),
    "base64": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
}
QUOTING = {name: quote_key(encode) for name, encode in ENCODINGS.items()}
HTML = send(b"<!DOCTYPE html><h1>It works!</h1>", kind="text/html")
BAD_GATEWAY = send(b"<h1>502</h1>", 502, kind="text/html")
GARBAGE = send(bytes(range(256)) * 8)
HUGE = send(b'{"choices": [{"message": {"content": "' + b"x" * 5_000_000 + b'"}}]}')
NO_CHOICES = send(b'{"choices": []}')
SURROGATE = send(b'{"choices": [{"message": {"content": "\\ud800 {"}}]}')


@contextmanager
def serve(answer: Callable[[dict[str, Any]], Behaviour]) -> Iterator[tuple[str, list[dict]]]:
    """Base URL of a server that behaves as `answer` says, and the requests that it got."""
    asked: list[dict] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"path": self.path, "headers": dict(self.headers)})
            answer(body)(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client had enough
                super().handle()

    CLOSING.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        CLOSING.set()
        server.shutdown()
        thread.join()
        server.server_close()
