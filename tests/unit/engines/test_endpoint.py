"""The client's side of vLLM, against real HTTP servers that speak its protocol."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import pytest

from sdcore.config import SamplingConfig
from sdcore.engines import Completion, Request, Served
from sdcore.engines.endpoint import Endpoint, Unavailable
from sdcore.engines.vllm import VllmEngine, completion
from sdcore.errors import EngineError, ModelError
from sdcore.keys import Key
from tests.helpers.fake_vllm import JsonHandler, adapter_of
from tests.helpers.tiny import adapted, flip, save

BASE = "served-base"
SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=4)


class Speaker(ThreadingHTTPServer):
    """Answers a completion with the last prompt token twice; may fail first, and may be slow."""

    daemon_threads = True

    def __init__(self, *, failures=(), others=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures, self.adapters = list(failures), list(others)
        self.bodies, self.posts, self.keys = [], [], set()
        self.listed = None  # in place of its models
        self.active = self.most_active = 0
        self.lock, self.gate = threading.Lock(), threading.Event()
        self.gate.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def complete(self, body):
        with self.lock:
            self.bodies.append(body)
            self.active += 1
            self.most_active = max(self.active, self.most_active)
        self.gate.wait(20)
        with self.lock:
            self.active -= 1
        token = body["prompt"][-1]
        return {
            "choices": [
                {
                    "token_ids": [token, token],
                    "prompt_token_ids": body["prompt"],
                    "logprobs": {"token_logprobs": [-0.5, -1.5]},
                    "finish_reason": "length",
                }
            ]
        }


class Handler(JsonHandler):
    def do_GET(self):
        self.server.keys.add(self.headers["Authorization"])
        names = [BASE, *self.server.adapters]
        data = [{"id": name, "parent": None if name == BASE else BASE} for name in names]
        self.answer(200, self.server.listed or {"data": data})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posts.append((self.path, body))
        with self.server.lock:
            failure = self.server.failures.pop(0) if self.server.failures else None
        if failure == "reset":
            self.close_connection = True  # no answer at all
        elif failure is not None:
            self.answer(failure, {"error": {"message": f"as scripted for {self.echoed()}"}})
        elif self.path == "/v1/load_lora_adapter":
            self.server.adapters.append(body["lora_name"])
            self.answer(200, {})
        elif self.path == "/v1/unload_lora_adapter":
            self.server.adapters.remove(body["lora_name"])
            self.answer(200, {})
        else:
            self.answer(200, self.server.complete(body))

    def echoed(self):
        return "".join(f"%{ord(c):02x}" for c in self.headers["Authorization"])


@contextmanager
def speaking(**behaviour):
    with Speaker(**behaviour) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()


@contextmanager
def engine_on(*servers, concurrency=4):
    endpoints = [Endpoint(server.url, Key("secret")) for server in servers]
    engine = VllmEngine(endpoints, end_ids=[9, 2], concurrency=concurrency)
    try:
        yield engine
    finally:
        engine.close()


def requests(count):
    return [Request((3, 4, 10 + i), i) for i in range(count)]


def expected(count):
    return [Completion((10 + i, 10 + i), (-0.5, -1.5), "length") for i in range(count)]


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").touch()
    return tmp_path / "base"


def test_a_request_says_all_and_leaves_nothing_to_defaults(base):
    told = []
    with speaking() as server, engine_on(server) as engine:
        engine.load(Served("base", base, base))
        asked = [Request((3, 4, 10), 2**62 + 1)]
        drawn = engine.generate(asked, SAMPLING, lambda *news: told.append(news))
    assert drawn == expected(1) and told == [(1, 2)] and server.keys == {"Bearer secret"}
    (body,) = server.bodies
    wanted = {
        "model": BASE, "prompt": [3, 4, 10], "seed": 2**62 + 1, "max_tokens": 4,
        "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "stop_token_ids": [2, 9], "ignore_eos": True, "logprobs": 0, "return_token_ids": True,
    }  # fmt: skip
    assert wanted.items() <= body.items()


def test_completions_come_in_the_order_of_the_requests_and_load_is_spread_and_bounded(base):
    with speaking() as one, speaking() as other, engine_on(one, other, concurrency=3) as engine:
        engine.load(Served("base", base, base))
        assert engine.generate(requests(40), SAMPLING) == expected(40)
        assert engine.generate([], SAMPLING) == []
    shares = [len(one.bodies), len(other.bodies)]
    assert sum(shares) == 40 and min(shares) >= 5
    assert max(one.most_active, other.most_active) <= 3


def test_calls_at_once_share_the_requests_that_may_be_in_flight(base):
    with speaking() as server, engine_on(server, concurrency=3) as engine:
        engine.load(Served("base", base, base))
        server.gate.clear()
        with ThreadPoolExecutor() as pool:
            calls = [pool.submit(engine.generate, requests(20), SAMPLING) for _ in range(2)]
            while server.active < 3:
                time.sleep(0.01)
            time.sleep(0.2)
            server.gate.set()
        assert [call.result() for call in calls] == [expected(20)] * 2
    assert server.most_active == 3


@pytest.mark.parametrize("failure", ["reset", 500, 503, 429])
def test_what_may_pass_is_tried_again_and_nothing_else_is_repeated(base, failure):
    with speaking(failures=[failure]) as server, engine_on(server) as engine:
        engine.load(Served("base", base, base))
        assert engine.generate(requests(6), SAMPLING) == expected(6)
    prompts = Counter(tuple(body["prompt"]) for body in server.bodies)
    assert set(prompts.values()) == {1}  # the failed one was not answered before
    assert len(server.posts) == 7


def test_a_dead_server_costs_nothing_but_time(base):
    with speaking() as alive, speaking() as dead:
        dead.shutdown()
        dead.server_close()
        with engine_on(dead, alive) as engine:
            engine.load(Served("base", base, base))
            assert engine.generate(requests(12), SAMPLING) == expected(12)
    assert len(alive.bodies) == 12


def test_a_refusal_is_an_error_with_the_servers_words_and_no_retry(base):
    with speaking(failures=[400]) as server, engine_on(server) as engine:
        engine.load(Served("base", base, base))
        with pytest.raises(EngineError, match=r"400 .*as scripted") as caught:
            engine.generate(requests(1), SAMPLING)
    assert "[key]" in str(caught.value) and "%73%65" not in str(caught.value)
    assert not isinstance(caught.value, Unavailable)
    assert len(server.posts) == 1


def test_an_engine_that_is_closed_samples_no_more(base):
    with speaking() as server, engine_on(server) as engine, ThreadPoolExecutor() as pool:
        engine.load(Served("base", base, base))
        server.gate.clear()
        call = pool.submit(engine.generate, requests(50), SAMPLING)
        while server.active < 4:
            time.sleep(0.01)
        engine.close()
        server.gate.set()
        with pytest.raises(EngineError, match="the engine is closed"):
            call.result(60)
        assert len(server.bodies) == 4


def test_an_error_leaves_no_request_behind(base):
    with speaking(failures=[400]) as server, engine_on(server, concurrency=1) as engine:
        engine.load(Served("base", base, base))
        with pytest.raises(EngineError):
            engine.generate(requests(50), SAMPLING)
    assert len(server.posts) <= 3


def test_samples_in_flight_when_another_is_refused_are_handed_over(base):
    with speaking() as server, engine_on(server) as engine:
        engine.load(Served("base", base, base))
        server.gate.clear()
        whole, finished = server.complete, {}

        def complete(body):
            if body["prompt"][-1] != 10:
                return whole(body)
            while server.active < 3:
                time.sleep(0.01)
            threading.Timer(0.3, server.gate.set).start()
            return {}

        server.complete = complete
        with pytest.raises(EngineError, match="not vLLM's"):
            engine.generate(requests(4), SAMPLING, on_finished=finished.update)
    assert finished == dict(enumerate(expected(4)[1:], 1))


def test_a_recheck_waits_while_another_thread_asks_for_the_policy():
    endpoint = Endpoint("http://127.0.0.1:1", None)

    class Loaded:
        def __ne__(self, other):
            recheck = threading.Thread(target=endpoint.recheck)
            recheck.start()
            recheck.join(0.2)
            return False

    endpoint._ready = Loaded(), "policy"
    assert endpoint._model(Loaded()) == "policy"


def test_adapters_are_loaded_by_policy_and_only_ours_unloaded(base):
    with speaking(others=["somebody-elses"]) as server, engine_on(server) as engine:
        for name in ("p1", "p2"):
            engine.load(Served(name, adapter_of(base, name), base))
            engine.generate(requests(5), SAMPLING)
            engine.generate(requests(5), SAMPLING)
        assert server.adapters == ["somebody-elses", "p2"]
        assert [body["model"] for body in server.bodies] == ["p1"] * 10 + ["p2"] * 10
        loads = [body for path, body in server.posts if path == "/v1/load_lora_adapter"]
        assert [body["lora_path"] for body in loads] == [str(base.parent / p) for p in ("p1", "p2")]
        engine.load(Served("base", base, base))
        engine.generate(requests(1), SAMPLING)
        assert server.adapters == ["somebody-elses"] and server.bodies[-1]["model"] == BASE


def test_a_server_that_was_restarted_gets_its_adapter_again(base):
    with speaking() as server, engine_on(server) as engine:
        engine.load(Served("p1", adapter_of(base, "p1"), base))
        engine.generate(requests(1), SAMPLING)
        server.adapters.clear()
        server.failures.append("reset")
        assert engine.generate(requests(3), SAMPLING) == expected(3)
        assert server.adapters == ["p1"]


def test_an_adapter_that_is_refused_says_what_the_server_needs(base):
    with speaking(failures=[404]) as server, engine_on(server) as engine:
        engine.load(Served("p1", adapter_of(base, "p1"), base))
        with pytest.raises(EngineError, match="does not load the adapter") as caught:
            engine.generate(requests(1), SAMPLING)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in caught.value.fix


def test_all_weights_cannot_go_to_a_running_server(base):
    trained = base.parent / "trained"
    trained.mkdir()
    (trained / "model.safetensors").touch()
    with speaking() as server, engine_on(server) as engine:
        engine.load(Served("p1", trained, base))
        with pytest.raises(EngineError, match="cannot be given new full weights"):
            engine.generate(requests(1), SAMPLING)
    assert not server.bodies


def test_an_engine_without_a_policy_or_a_prompt_says_so(base):
    with speaking() as server, engine_on(server) as engine:
        with pytest.raises(EngineError, match="no policy"):
            engine.generate(requests(1), SAMPLING)
        engine.load(Served("base", base, base))
        with pytest.raises(EngineError, match="empty"):
            engine.generate([Request((), 0)], SAMPLING)


def test_a_policy_without_a_folder_cannot_be_served_by_vllm(base):
    with speaking() as server, engine_on(server) as engine:
        engine.load(Served("p1", None, base))
        with pytest.raises(EngineError, match="has none"):
            engine.generate(requests(1), SAMPLING)
    assert not server.bodies


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_token_ids": [4, 10]}, "changed the prompt"),
        ({"finish_reason": "abort"}, "finish_reason: Input should be 'stop' or"),
        ({"logprobs": {"token_logprobs": [-0.5]}}, "not one per token"),
        ({"logprobs": {"token_logprobs": [-0.5, float("nan")]}}, "1: Input should be a finite"),
        ({"logprobs": {"token_logprobs": [-0.5, 0.5]}}, "less than or equal to"),
        ({"logprobs": None}, "logprobs: Input should be"),
        ({"token_ids": ["a", "b"]}, "token_ids.0: Input should be a valid integer"),
        ({"token_ids": [True, 10]}, "token_ids.0: Input should be a valid integer"),
        ({"token_ids": [-1, 10]}, "token_ids.0: Input should be greater"),
        ({"token_ids": []}, "at least 1 item"),
        ({"token_ids": [10, 11]}, "stopped at a token that is no end\n  got: 11"),
        ({"token_ids": [10] * 9, "logprobs": {"token_logprobs": [-1] * 9}}, "9 tokens"),
    ],
)
def test_answers_that_break_the_promise_are_refused(change, message):
    choice = {
        "token_ids": [10, 10],
        "prompt_token_ids": [3, 4, 10],
        "logprobs": {"token_logprobs": [-0.5, -1.5]},
        "finish_reason": "stop",
    }
    (request,) = requests(1)
    good = Completion((10, 10), (-0.5, -1.5), "stop")
    assert completion(request, {"choices": [choice]}, [10], 4) == good
    with pytest.raises(EngineError, match=message):
        completion(request, {"choices": [choice | change]}, [10], 4)


@pytest.mark.parametrize("answer", [None, "<html>", [], {"choices": []}, {"choices": [{}]}])
def test_what_is_no_answer_of_vllm_is_refused(answer):
    with pytest.raises(EngineError, match="not vLLM's"):
        completion(requests(1)[0], answer, [10], 4)


@pytest.mark.parametrize(
    "listed", ["<html>", [5], {"data": []}, {"data": [{"id": "gpt"}]}, {"data": [{"parent": None}]}]
)
def test_a_server_that_is_not_vllms_is_named(base, listed):
    with speaking() as server, engine_on(server) as engine:
        server.listed = listed
        engine.load(Served("base", base, base))
        with pytest.raises(EngineError, match=f"not a vLLM server[\\s\\S]*{server.url}/v1/models"):
            engine.generate(requests(1), SAMPLING)


def test_a_server_of_this_machine_is_asked_without_a_proxy(base, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with speaking() as server, engine_on(server) as engine:
        engine.load(Served("base", base, base))
        assert len(engine.generate(requests(1), SAMPLING)) == 1


@pytest.mark.parametrize(
    ("url", "variable"),
    [("http://999.1.1.1", {}), ("http://x.invalid", {"ALL_PROXY": "ftp://user:secret-pw@host"})],
)
def test_an_address_or_a_proxy_that_cannot_be_used_is_explained(url, variable, monkeypatch):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match="cannot be asked") as caught:
        Endpoint(url, None)
    assert caught.value.where == url and "ALL_PROXY" in caught.value.fix
    assert "secret-pw" not in str(caught.value)


def test_a_damaged_checkpoint_is_not_served(tmp_path):
    save(adapted(), tmp_path / "p1")
    flip(tmp_path / "p1" / "adapter_model.safetensors")
    engine = VllmEngine([], end_ids=[2], concurrency=1)
    with pytest.raises(ModelError, match="changed: adapter_model"):
        engine.load(Served("p1", tmp_path / "p1", tmp_path))
