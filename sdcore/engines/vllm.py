"""The vLLM engine: requests spread over one or several servers, each retried if one dies.

vLLM's defaults make the promise of `Completion` true: `--logprobs-mode raw_logprobs` gives
log-probs before temperature and top-p. A running server must not be started with another mode.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from threading import BoundedSemaphore, Lock
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from sdcore.config import EngineConfig, SamplingConfig
from sdcore.engines import (
    Completion,
    FinishReason,
    OnFinished,
    OnProgress,
    Request,
    Resources,
    Served,
    silent,
    unheard,
)
from sdcore.engines.endpoint import SHOWN, Endpoint, Unavailable
from sdcore.engines.server import VllmServer
from sdcore.errors import EngineError
from sdcore.keys import read_key
from sdcore.models import policies, sealed

HIGHEST = 1e-3  # a log-prob is 0 at most, but for rounding
ATTEMPTS = 6  # for one request; with the waits between them about half a minute


def open_engine(settings: EngineConfig, resources: Resources) -> "VllmEngine":
    """Return running servers, with the key in `$VLLM_API_KEY`, or start one of our own."""
    given = os.environ.get("VLLM_API_KEY")
    key = read_key(given, "$VLLM_API_KEY") if settings.urls and given else None
    endpoints = [Endpoint(url, key) for url in settings.urls]
    if not endpoints:
        server = VllmServer(
            settings,
            dtype=resources.model.dtype,
            lora_rank=resources.lora.rank if resources.lora else None,
            log_path=resources.root / "vllm-server.log",
            gpus=resources.gpus,
            share=resources.share,
        )
        endpoints = [Endpoint(server.url, server.key, server)]
    ends = policies.end_ids(resources.folder)
    return VllmEngine(endpoints, end_ids=ends, concurrency=settings.concurrency)


class VllmEngine:
    """Sample from vLLM servers.

    The same request and seed give the same tokens, unless rounding that depends on the requests
    that happen to be batched with it tips a near-tie. A request whose server dies is asked again;
    those that are finished stay so.

    Args:
        endpoints: the servers. Each request goes to the one with the fewest in flight, and to one
            that failed only when the others did too.
        end_ids: token ids that end a response.
        concurrency: requests in flight at one server, of all calls together.
    """

    reads_folders = True
    update_share: float | None = None  # the servers do not show their weights

    def __init__(
        self, endpoints: Sequence[Endpoint], *, end_ids: Collection[int], concurrency: int
    ) -> None:
        self._endpoints, self._end_ids = list(endpoints), sorted(end_ids)
        self._threads = concurrency * len(endpoints)
        self._slots, self._lock = BoundedSemaphore(self._threads), Lock()
        self._served: Served | None = None

    def load(self, policy: Served) -> None:
        """Sample from this policy from now on; each server loads it before its next request.

        An adapter is hot-loaded under the policy's id. A server of our own reads all weights from
        the folder, where it has to after a restart; servers that run already refuse them.

        Raises:
            ModelError: a file of the policy's folder differs from its digest.
        """
        if policy.folder is not None and sealed.was_written_here(policy.folder):
            sealed.require_intact(policy.folder)
        self._served = replace(policy, live=None)  # the trainer's weights are not ours to keep

    def close(self) -> None:
        """End the connections, and the servers that are ours."""
        for endpoint in self._endpoints:
            endpoint.close()

    def generate(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        on_progress: OnProgress = silent,
        on_finished: OnFinished = unheard,
    ) -> list[Completion]:
        """Draw one sample per request, in the order of the requests.

        Args:
            requests: prompts and seeds.
            sampling: temperature, top-p and length; the servers choose the batch size.
            on_progress: called for finished samples, while others are still drawn.
            on_finished: called with them.

        Raises:
            EngineError: no policy is loaded, a request is refused, or no server answers.
        """
        if self._served is None:
            raise EngineError("no policy is loaded", fix="call load first")
        if not all(request.prompt_ids for request in requests):
            raise EngineError("a prompt is empty", expected="at least one token id")
        for endpoint in self._endpoints:
            endpoint.recheck()
        completions: dict[int, Completion] = {}
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="vllm")
        try:
            index_of = {
                pool.submit(self._draw, self._served, request, sampling): index
                for index, request in enumerate(requests)
            }
            for drawn in _arriving(pool, list(index_of)):
                fresh = {index_of[each]: each.result() for each in drawn}
                completions |= fresh
                on_progress(len(fresh), sum(len(each.token_ids) for each in fresh.values()))
                on_finished(fresh)
        finally:
            pool.shutdown(cancel_futures=True)
        return [completions[index] for index in range(len(requests))]

    def _draw(self, served: Served, request: Request, sampling: SamplingConfig) -> Completion:
        body = self._body(request, sampling)
        for attempt in Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_exponential_jitter(initial=1, max=30),
            stop=stop_after_attempt(ATTEMPTS),
            reraise=True,
        ):
            with attempt, self._least_busy() as endpoint:
                answer = endpoint.complete(served, body)
                return completion(request, answer, self._end_ids, sampling.max_new_tokens)
        raise AssertionError("Retrying returns or raises")

    def _body(self, request: Request, sampling: SamplingConfig) -> dict[str, Any]:
        """A completion request that leaves nothing to a server's or a model's defaults."""
        return {
            "prompt": request.prompt_ids,
            "seed": request.seed,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": self._end_ids,
            "ignore_eos": True,  # the end tokens are those above, and no others
            "logprobs": 0,  # of the drawn token
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
        }

    @contextmanager
    def _least_busy(self) -> Iterator[Endpoint]:
        with self._slots:
            with self._lock:
                endpoint = min(self._endpoints, key=lambda each: (each.failures, each.active))
                endpoint.active += 1
            try:
                yield endpoint
            finally:
                with self._lock:
                    endpoint.active -= 1


class _Logprobs(BaseModel):
    token_logprobs: list[Annotated[float, Field(le=HIGHEST, allow_inf_nan=False)]]


class _Choice(BaseModel):
    model_config = ConfigDict(strict=True)

    token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(min_length=1)
    prompt_token_ids: list[int]
    logprobs: _Logprobs
    finish_reason: FinishReason


class _Answer(BaseModel):
    """The parts of vLLM's answer that are used."""

    choices: list[_Choice] = Field(min_length=1)


def completion(request: Request, answer: object, end_ids: Collection[int], most: int) -> Completion:
    """Return the completion, of at most `most` tokens, in a server's answer.

    Raises:
        EngineError: it is not vLLM's, is for another prompt, was cut short, is too long, has no
            log-prob for each token, or stopped at another token than an end.
    """
    try:
        choice = _Answer.model_validate(answer).choices[0]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise EngineError(
            "the server's answer is not vLLM's",
            got=f"{place}: {first['msg']}, in {answer}"[:SHOWN],
            expected="token ids with their log-probs",
            fix="see sdcore/engines/README.md for how a server is started",
        ) from None
    ids, logprobs = tuple(choice.token_ids), tuple(choice.logprobs.token_logprobs)
    if tuple(choice.prompt_token_ids) != tuple(request.prompt_ids):
        raise EngineError("vLLM changed the prompt", got=choice.prompt_token_ids)
    if choice.finish_reason == "stop" and ids[-1] not in end_ids:
        raise EngineError(
            "vLLM stopped at a token that is no end",
            got=ids[-1],
            expected=f"one of {', '.join(map(str, end_ids))}",
            fix="start the server with --generation-config vllm, and without stop words",
        )
    if not len(ids) == len(logprobs) <= most:
        raise EngineError(
            "vLLM's log-probs are not one per token, or the tokens too many",
            got=f"{len(logprobs)} log-probs and {len(ids)} tokens",
            expected=f"at most {most} tokens",
        )
    return Completion(ids, logprobs, choice.finish_reason)


def _arriving(
    pool: ThreadPoolExecutor, futures: Sequence[Future[Completion]]
) -> Iterator[list[Future[Completion]]]:
    """Yield futures with a result, as they come.

    Where one fails, those not begun are cancelled, those in flight are yielded, and then its error
    is raised.
    """
    done: SimpleQueue[Future[Completion]] = SimpleQueue()
    for each in futures:
        each.add_done_callback(done.put)
    left, failure = len(futures), None
    while left:
        arrived = [done.get() for _ in range(max(1, done.qsize()))]
        left -= len(arrived)
        ended = [each for each in arrived if not each.cancelled()]
        failures = [error for each in ended if (error := each.exception()) is not None]
        if failures and failure is None:
            failure = failures[0]
            pool.shutdown(wait=False, cancel_futures=True)
        if sound := [each for each in ended if each.exception() is None]:
            yield sound
    if failure is not None:
        raise failure
