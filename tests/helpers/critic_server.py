"""A real HTTP server that speaks, or fails to speak, as an OpenAI-compatible endpoint."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sdcore.critics.llm import OracleCritic
from sdcore.problems.arithmetic import parse_question
from sdcore.testing import Behaviour, Handler, chat_endpoint, say, send, submitted

CLOSING = threading.Event()


def _answer(case: str, step: int | None, corrected: str) -> str:
    return json.dumps({"case": case, "first_wrong_step": step, "corrected": corrected})


def critique(case: str, step: int | None, corrected: str) -> Behaviour:
    return say(_answer(case, step, corrected))


def exact_text(body: dict[str, Any]) -> str:
    """The answer to a critic's prompt that the oracle would give."""
    asked = submitted(body)
    known = replace(asked, reference=str(parse_question(asked.question).answer))
    ((_, found),) = OracleCritic().criticise([known])
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
    """As `chat_endpoint`; what stalls or drips ends with it."""
    CLOSING.clear()
    with chat_endpoint(answer) as served:
        try:
            yield served
        finally:
            CLOSING.set()
