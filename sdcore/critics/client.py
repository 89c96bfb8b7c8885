"""Clients of a critic's model: an OpenAI-compatible endpoint, or an engine in this process.

Responses of an endpoint are untrusted: bounded in size and time, and parsed strictly.
"""

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from queue import SimpleQueue
from typing import Any

import httpx
from pydantic import BaseModel, Field, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)
from tenacity.wait import wait_base
from transformers import PreTrainedTokenizerBase

from sdcore.config import LlmCriticConfig, SamplingConfig
from sdcore.config.critic import MILLION
from sdcore.critics.budget import Budget, Paid
from sdcore.critics.llm import GoOn, Reply, at_an_end
from sdcore.critics.parsing import SCHEMA
from sdcore.critics.servers import Servers
from sdcore.engines import Engine, Request
from sdcore.engines.connections import follows_environment, opening
from sdcore.errors import EngineError
from sdcore.keys import Key, redacted
from sdcore.models.prompts import Message, neutralise, prompt_ids
from sdcore.traces import response_text

UNPAID = Reply(None)  # no answer, and nothing to pay
MAX_BYTES = 2 << 20  # per response; an answer of 131072 tokens has about half a million bytes
READ = 100_000  # bytes of an unusable response in which the key is looked for
BUSY = {408, 409, 425, 429}  # retried, like all statuses from 500 on
REFUSALS = {401, 402, 403, 404, 405}  # hold for every request


class ChatEndpoint:
    """A model behind an OpenAI-compatible chat endpoint (vLLM, llama.cpp, hosted services).

    Args:
        config: its address and sampling settings.
        key: its bearer token; cut out of everything that the endpoint sends back.
        budget: what may be spent; by default what the settings allow.
        before_request: called before each request; what it raises ends `ask`, once the replies to
            requests in flight have come.
        backoff: wait between tries of one request; `Retry-After` is honoured up to a minute.
    """

    def __init__(
        self,
        config: LlmCriticConfig,
        key: Key | None = None,
        budget: Budget | None = None,
        before_request: Callable[[], None] = lambda: None,
        backoff: wait_base = wait_random_exponential(multiplier=1, max=60),  # noqa: B008
    ) -> None:
        self._config, self._backoff = config, backoff
        self._servers = Servers(config.addresses, config.concurrency)
        self._key, self._before_request = key, before_request
        self._budget = budget or Budget(config.limits)
        self._cancelled = threading.Event()

    def ask(
        self, conversations: Iterable[list[Message]], go_on: GoOn = at_an_end
    ) -> Iterator[tuple[int, Reply]]:
        """Yield last replies in the order of arrival, at most `concurrency` in flight per server.

        Conversations that are still to come keep none waiting that are there: a thread takes them.

        Raises:
            EngineError: the endpoint refuses every request (no key, no such model).
            BudgetError: the next request could cost more than is left; replies to requests in
                flight come first.
        """
        self._cancelled.clear()
        source, events = enumerate(conversations), SimpleQueue[Future[Any]]()
        index_of: dict[Future[Any], int] = {}
        error: BaseException | None = None
        with ThreadPoolExecutor(1) as taker, ThreadPoolExecutor(self._servers.total) as askers:

            def start(pool: Executor, function: Callable[..., Any], *given: object) -> Future[Any]:
                future = pool.submit(function, *given)
                future.add_done_callback(events.put)
                return future

            coming: Future[Any] | None = start(taker, next, source, None)
            try:
                while coming or index_of:
                    future = events.get()
                    index = index_of.pop(future, None)
                    if failed := future.exception():
                        error = failed if isinstance(error, _Cancelled | None) else error
                        self._cancelled.set()
                    if index is None:
                        coming = None
                        if error is None and (conversation := future.result()):
                            index, messages = conversation
                            index_of[start(askers, self._reply, messages)] = index
                            coming = start(taker, next, source, None)
                    elif failed is None:
                        messages = go_on(index, future.result())
                        if messages is None:
                            yield index, future.result()
                        elif error is None:
                            index_of[start(askers, self._reply, messages)] = index
            finally:  # a caller that stops iterating does not wait for queued requests
                self._cancelled.set()
            if error:
                raise error

    def _http(self, url: httpx.URL) -> httpx.AsyncClient:
        plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return httpx.AsyncClient(
            headers=plain | ({"Authorization": f"Bearer {self._key.text}"} if self._key else {}),
            timeout=self._config.timeout,
            trust_env=follows_environment(url),
            verify=self._certificates,
        )

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        """Loading them takes longer than a request."""
        return httpx.create_ssl_context()

    def _reply(self, messages: list[Message]) -> Reply:
        """Send one request, retried while its failure may pass."""
        if self._cancelled.is_set():
            raise _Cancelled("the request was cancelled")
        self._before_request()
        body = json.dumps(self._body(messages)).encode()
        tries = Retrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(self._config.tries) | stop_when_event_set(self._cancelled),
            wait=self._wait,
            sleep=sleep_using_event(self._cancelled),
            retry_error_callback=_given_up,
        )
        unusable: list[Reply] = []
        try:
            reply: Reply = tries(self._paid_post, body, unusable)
        except EngineError:
            self._cancelled.set()  # here, so that no queued request starts in between
            raise
        return replace(
            reply,
            prompt_tokens=reply.prompt_tokens + sum(each.prompt_tokens for each in unusable),
            tokens=reply.tokens + sum(each.tokens for each in unusable),
            cost=reply.cost + sum(each.cost for each in unusable),
        )

    def _paid_post(self, body: bytes, unusable: list[Reply]) -> Reply:
        """Send one request within the budget; a reply that is billed and unusable is appended."""
        most = len(body), self._config.max_tokens  # a token has one byte or more
        worst = Paid(self._config.price(*most), sum(most))
        self._budget.take(worst)
        billed = UNPAID
        try:
            billed = self._post(body)
        except _PassingError as error:
            billed = error.billed
            unusable.append(billed)
            raise
        finally:
            paid = Paid(billed.cost, billed.prompt_tokens + billed.tokens)
            self._budget.settle(worst, paid)
        return billed

    def _body(self, messages: list[Message]) -> dict[str, Any]:
        schema = {"name": "critique", "strict": True, "schema": SCHEMA}
        form = {"response_format": {"type": "json_schema", "json_schema": schema}}
        return {
            "model": self._config.model,
            "messages": [each | {"content": neutralise(each["content"])} for each in messages],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
        } | (form if self._config.structured else {})

    def _post(self, body: bytes) -> Reply:
        with self._servers.one(passing=_PassingError) as address:
            return self._post_to(address, body)

    def _post_to(self, address: str, body: bytes) -> Reply:
        with opening(address):
            url = httpx.URL(f"{address.rstrip('/')}/chat/completions")
            http = self._http(url)
        try:
            response, content = asyncio.run(self._exchange(http, url, body))
        except httpx.RequestError as error:  # some quote what the server sent
            reason = redacted(f"{type(error).__name__}: {error}", self._key)
            raise _PassingError(reason) from None
        except TimeoutError as error:
            seconds = f"{self._config.timeout:g} s"
            raise _PassingError(f"no whole answer within {seconds} (critic.timeout)") from error
        if content is None:
            return Reply(None, failure=f"a response of more than {MAX_BYTES} bytes")
        if response.status_code == httpx.codes.OK:
            return self._read_reply(content, len(body))
        reason = f"HTTP {response.status_code}: {self._start(content)}"
        if response.status_code in BUSY or response.status_code >= 500:
            raise _PassingError(reason, response.headers.get("Retry-After", ""))
        if response.status_code in REFUSALS or response.is_redirect:
            raise EngineError(
                "the critic's endpoint refuses requests",
                got=reason,
                where=address,
                fix="check critic.base_url, critic.model and critic.api_key_env or api_key_block",
            )
        return Reply(None, failure=reason)

    async def _exchange(
        self, client: httpx.AsyncClient, url: httpx.URL, body: bytes
    ) -> tuple[httpx.Response, bytes | None]:
        """Return the response and its body; None where it is too large.

        `timeout` bounds the whole: connecting, every byte of the headers and of the body. The
        bounds of httpx are per read, so that a server that sends a byte at a time never exceeds
        them.

        Raises:
            TimeoutError: the exchange takes too long.
        """
        async with (
            asyncio.timeout(self._config.timeout),
            client as http,
            http.stream("POST", url, content=body) as response,
        ):
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_BYTES:
                    return response, None
            return response, bytes(content)

    def _read_reply(self, content: bytes, sent: int) -> Reply:
        """Parse a reply; tokens that are not reported, or as 0, are estimated as 4 characters."""
        reported: _Usage | None = None
        with suppress(ValidationError):
            reported = _Billed.model_validate_json(content).usage
        try:
            found = _Completion.model_validate_json(content)
        except ValidationError:
            billed = self._billed(None, reported) if reported else UNPAID
            raise _PassingError(
                f"no chat completion: {self._start(content)}", billed=billed
            ) from None
        text = redacted(found.choices[0].message.content or "", self._key)
        if reported is None or (text and not reported.completion_tokens):
            reported = _Usage(prompt_tokens=-(-sent // 4), completion_tokens=-(-len(text) // 4))
        return self._billed(text, reported)

    def _billed(self, text: str | None, usage: "_Usage") -> Reply:
        cost = self._config.price(usage.prompt_tokens, usage.completion_tokens)
        return Reply(text, usage.prompt_tokens, usage.completion_tokens, cost)

    def _start(self, content: bytes) -> str:
        """Return the beginning of an unusable response, on one line, without the key."""
        # All of it would take long to search, and little is shown.
        text = redacted(content[:READ].decode("utf-8", "replace"), self._key)
        return " ".join(text[:400].split())[:200] or "nothing"

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, _PassingError) else 0.0
        return max(self._backoff(state), asked)


class EngineClient:
    """A model run by an engine of this process; all conversations are one batch."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        config: LlmCriticConfig,
        budget: Budget | None = None,
    ) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._budget = budget or Budget(config.limits)
        self._sampling = SamplingConfig(
            temperature=config.temperature,
            max_new_tokens=config.max_tokens,
            batch_size=config.concurrency,
        )

    def ask(
        self, conversations: Iterable[list[Message]], go_on: GoOn = at_an_end
    ) -> Iterator[tuple[int, Reply]]:
        """Yield last replies; those that go on are the next batch, in the same order.

        Raises:
            EngineError: a conversation and its answer exceed the model's context.
            BudgetError: the batch could take more tokens than are left.
        """
        waiting = dict(enumerate(conversations))
        while waiting:
            requests = [
                Request(prompt_ids(self._tokenizer, each), seed)
                for seed, each in enumerate(waiting.values())
            ]
            read, most = sum(len(each.prompt_ids) for each in requests), self._sampling
            worst = Paid(tokens=read + len(requests) * most.max_new_tokens)
            self._budget.take(worst)
            paid = Paid()
            try:
                completions = self._engine.generate(requests, self._sampling)
                paid = Paid(tokens=read + sum(len(each.token_ids) for each in completions))
            finally:
                self._budget.settle(worst, paid)
            for index, asked, said in zip([*waiting], requests, completions, strict=True):
                text = response_text(self._tokenizer, said.token_ids)
                reply = Reply(text, len(asked.prompt_ids), len(said.token_ids))
                messages = go_on(index, reply)
                if messages is None:
                    del waiting[index]
                    yield index, reply
                else:
                    waiting[index] = messages


class _Cancelled(EngineError):
    """A request that was not sent, since another one was refused."""


class _PassingError(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, retry_after: str = "", billed: Reply = UNPAID) -> None:
        super().__init__(reason)
        self.billed = billed
        self.retry_after = min(float(retry_after), 60.0) if retry_after.isdecimal() else 0.0


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=1, le=10 * MILLION)
    completion_tokens: int = Field(ge=0, le=10 * MILLION)


class _Completion(BaseModel):
    """The parts of a chat completion that are used."""

    choices: list[_Choice] = Field(min_length=1)


class _Billed(BaseModel):
    """The tokens that a response reports, usable or not; missing or odd usage is estimated."""

    usage: _Usage


def _given_up(state: RetryCallState) -> Reply:
    error = state.outcome.exception() if state.outcome else None
    return Reply(None, failure=f"{error} ({state.attempt_number} tries)", passing=True)
