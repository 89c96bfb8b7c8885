"""Real vLLM servers: sampling, adapters, kills. `make vllm` makes the environment they need."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import httpx
import polars as pl
import psutil
import pytest
import torch

from sdcore.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig
from sdcore.engines import Request, Served
from sdcore.engines.endpoint import Endpoint
from sdcore.engines.server import CPU_FLAGS, ENVIRONMENT, VllmServer, cause, kernel_rank
from sdcore.engines.transformers import TransformersEngine
from sdcore.engines.vllm import VllmEngine
from sdcore.errors import EngineError
from sdcore.models import hub, policies, weight_files
from sdcore.store.database import Store
from sdcore.system import supervise
from sdcore.system.ports import answers, free_port
from tests.helpers.paths import QUICKSTART, ROOT
from tests.helpers.tiny import save

PYTHON = Path(os.environ.get("SDCORE_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
SETTINGS = EngineConfig(kind="vllm", python=PYTHON, cache_gib=0.25, concurrency=16)
BASE = hub.resolve("builtin:tiny-solver")
ENDS = policies.end_ids(BASE)
REQUESTS = [Request((1, 5, 30 + i % 4, 40, 6), i) for i in range(48)]
DRAWN = SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=40)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=40)

needs_vllm = pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: run `make vllm`")


def model():
    return policies.load_policy(BASE, ModelConfig(name="builtin:tiny-solver", device="cpu"))


def changed(policy, scale):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weight_files.gathered(policy).values():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return policy


def adapted(base=None):
    lora = LoraConfig(rank=4, alpha=8)
    return changed(policies.attach_lora(base or model(), lora, seed=0), 0.05)


def untied(scale):
    """The model with a head of its own, and all weights changed."""
    policy = model()
    policy.config.tie_word_embeddings = False
    policy.lm_head.weight = torch.nn.Parameter(1.1 * policy.lm_head.weight.detach())
    return changed(policy, scale)


def starts_in(log):
    return log.read_text().count("Started server process")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("policies")
    save(adapted(), root / "adapter")
    save(changed(model(), 0.02), root / "full")
    return root


@contextmanager
def own_server(folder):
    server = VllmServer(SETTINGS, dtype="float32", lora_rank=4, log_path=folder / "vllm.log")
    engine = VllmEngine(
        [Endpoint(server.url, server.key, server)], end_ids=ENDS, concurrency=SETTINGS.concurrency
    )
    try:
        yield server, engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    with own_server(folder) as (server, engine):
        yield server, engine, folder / "vllm.log"


def family():
    """Our servers and their descendants: the guard, the API server, its engine, the workers."""
    ours = psutil.Process().children()
    guards = [each for each in ours if supervise.__file__ in each.cmdline()]
    return guards + [child for each in guards for child in each.children(recursive=True)]


def api_server():
    return next(each for each in family() if "vllm.entrypoints" in " ".join(each.cmdline()[:4]))


def largest_difference(policy, completions, requests=REQUESTS):
    """Of the engine's log-probs and those of a plain forward pass, in nats."""
    worst = 0.0
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logprobs = policy(ids, use_cache=False).logits[0].log_softmax(-1)
        at = torch.arange(len(request.prompt_ids) - 1, ids.shape[1] - 1)
        ours = logprobs[at, ids[0, len(request.prompt_ids) :]]
        worst = max(worst, float((ours - torch.tensor(completion.logprobs)).abs().max()))
    return worst


def tokens(completions):
    return [completion.token_ids for completion in completions]


@needs_vllm
@pytest.mark.slow
def test_samples_have_seeds_and_log_probs_of_the_model_itself(running):
    _, engine, _ = running
    engine.load(Served("base", BASE, BASE))
    drawn = engine.generate(REQUESTS, DRAWN)
    assert tokens(engine.generate(REQUESTS, DRAWN)) == tokens(drawn)
    assert len(set(tokens(drawn))) > len(REQUESTS) / 2
    assert largest_difference(model(), drawn) < 1e-3
    stopped = [c for c in drawn if c.finish_reason == "stop"]
    assert stopped and all(c.token_ids[-1] in ENDS for c in stopped)
    short = engine.generate(REQUESTS[:4], DRAWN.model_copy(update={"max_new_tokens": 3}))
    assert [(c.finish_reason, len(c.token_ids)) for c in short] == [("length", 3)] * 4


@needs_vllm
@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_transformers_engine(running):
    _, engine, _ = running
    engine.load(Served("base", BASE, BASE))
    ours = TransformersEngine(model(), end_ids=ENDS).generate(REQUESTS, GREEDY)
    assert tokens(engine.generate(REQUESTS, GREEDY)) == tokens(ours)


@needs_vllm
@pytest.mark.slow
def test_an_adapter_is_hot_loaded_under_its_policys_name_and_changes_the_output(running, folders):
    _, engine, log = running
    starts = starts_in(log)
    engine.load(Served("base", BASE, BASE))
    before = engine.generate(REQUESTS, GREEDY)
    engine.load(Served("policy-1", folders / "adapter", BASE))
    after = engine.generate(REQUESTS, GREEDY)
    assert tokens(after) != tokens(before)
    assert largest_difference(adapted(), after) < 1e-3
    engine.load(Served("base", BASE, BASE))
    assert tokens(engine.generate(REQUESTS, GREEDY)) == tokens(before)
    assert "'policy-1'" in log.read_text() and "Removed LoRA adapter" in log.read_text()
    assert starts_in(log) == starts


@needs_vllm
@pytest.mark.slow
def test_too_long_a_request_is_refused_in_vllms_words(running):
    _, engine, _ = running
    engine.load(Served("base", BASE, BASE))
    with pytest.raises(EngineError, match="max_model_len=512"):
        engine.generate(REQUESTS[:1], SamplingConfig(max_new_tokens=600))


@pytest.mark.night
@needs_vllm
@pytest.mark.slow
def test_a_server_killed_in_the_middle_costs_the_unfinished_requests_only(running, folders):
    _, engine, log = running
    engine.load(Served("policy-1", folders / "adapter", BASE))
    expected = engine.generate(REQUESTS, GREEDY)
    starts = starts_in(log)
    old, killed = family(), []

    def kill_once(*_):
        if not killed:
            killed.append(api_server())
            killed[0].kill()

    assert tokens(engine.generate(REQUESTS, GREEDY, kill_once)) == tokens(expected)
    assert starts_in(log) == starts + 1
    _, alive = psutil.wait_procs(old, timeout=60)
    assert not alive


@needs_vllm
@pytest.mark.slow
@pytest.mark.night
def test_a_tied_head_needs_a_restart_on_cpus(running, folders):
    _, engine, log = running
    engine.load(Served("base", BASE, BASE))
    engine.generate(REQUESTS, GREEDY)
    starts = starts_in(log)
    engine.load(Served("policy-2", folders / "full", BASE))
    after = engine.generate(REQUESTS, GREEDY)
    assert largest_difference(changed(model(), 0.02), after) < 1e-3
    assert starts_in(log) == starts + 1
    assert "a head that is tied to the embedding" in log.read_text()


@pytest.mark.night
@needs_vllm
@pytest.mark.slow
def test_new_weights_are_read_without_a_restart(tmp_path):
    """The prompts share a prefix that is cached: vLLM does so in blocks, on CPUs of 128 tokens."""
    requests = [Request((1, *range(5, 95), *range(5, 95), 30 + i, 6), i) for i in range(16)]
    scales = {"one": 0.0, "other": 0.02}
    for name, scale in scales.items():
        untied(scale).save_pretrained(tmp_path / name)
    save(adapted(untied(0.0)), tmp_path / "adapter")
    with own_server(tmp_path) as (_, engine):

        def worst(name, folder, policy):
            engine.load(Served(name, folder, tmp_path / "one"))
            return largest_difference(policy, engine.generate(requests, GREEDY), requests)

        for name in ("one", "other", "one"):
            assert worst(name, tmp_path / name, untied(scales[name])) < 1e-3
            if name == "one":
                assert worst("p1", tmp_path / "adapter", adapted(untied(0.0))) < 1e-3
        assert worst("one", tmp_path / "one", untied(0.02)) > 0.1
    log = tmp_path / "vllm.log"
    assert starts_in(log) == 1 and log.read_text().count("Loaded new LoRA adapter") == 2


@needs_vllm
@pytest.mark.slow
def test_it_listens_on_its_socket_alone_and_ends_with_its_engine(running, folders):
    server, engine, _ = running
    engine.load(Served("policy-1", folders / "adapter", BASE))
    engine.generate(REQUESTS[:1], GREEDY)
    assert server.socket.parent.stat().st_mode & 0o777 == 0o700
    api = api_server()
    assert not [each for each in api.net_connections("inet") if each.status == "LISTEN"]
    with httpx.Client(base_url=server.url, transport=server.transport()) as stranger:
        assert stranger.get("/v1/models").status_code == 401
    old = family()
    engine.close()
    _, alive = psutil.wait_procs(old, timeout=60)
    assert not alive and not server.socket.parent.exists()


@pytest.mark.night
@needs_vllm
@pytest.mark.slow
def test_no_process_is_left_when_the_parent_is_killed(tmp_path):
    script = textwrap.dedent(f"""
        from pathlib import Path
        from sdcore.engines.server import VllmServer
        from tests.integration.test_vllm import BASE, SETTINGS
        server = VllmServer(SETTINGS, dtype="float32", lora_rank=None,
                            log_path=Path({str(tmp_path)!r}) / "vllm.log")
        server.ensure(BASE)
        print("ready", flush=True)
        input()
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert parent.stdout.readline() == "ready\n"
        left = psutil.Process(parent.pid).children(recursive=True)
        assert len(left) >= 3  # the guard, the API server, its engine
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


@needs_vllm
@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(tmp_path):
    with own_server(tmp_path) as (_, engine):
        engine.load(Served("empty", tmp_path, tmp_path))
        with pytest.raises(EngineError, match="did not start") as caught:
            engine.generate(REQUESTS[:1], GREEDY)
    assert "Invalid repository ID or local directory" in caught.value.got
    assert caught.value.where == str(tmp_path / "vllm.log")


SMALL = [
    "seeds=[3]", "problems.train=8", "problems.validation=4", "problems.test=4",
    "training.rounds=2", "training.questions_per_round=4", "evaluation.every=2",
    "training.lora.rank=4", "evaluation.samples=2", "evaluation.validation_samples=2",
    "evaluation.resamples=200", "conditions.grpo.group_size=2", "engine.kind=vllm",
]  # fmt: skip


def ran(workspace, *more, environment=None):
    """Run three small conditions of two rounds; return the tables."""
    command = [Path(sys.executable).with_name("sdcore"), "run", QUICKSTART, *SMALL, *more]
    done = subprocess.run(
        [*map(str, command), "--workspace", str(workspace)],
        capture_output=True, text=True, env=os.environ | (environment or {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = Store(workspace / "sdcore.duckdb")
    updates = store.rows("updates")
    assert len(updates) == 6
    assert updates["logprob_drift_max"].max() < 1e-3
    assert (updates["logprob_drift"] <= updates["logprob_drift_max"]).all()
    sampled = store.rows("rollouts").filter(pl.col("purpose") == "train")
    assert sampled["policy_id"].n_unique() == 4  # the base, and each condition after one round
    return store


@needs_vllm
@pytest.mark.slow
def test_an_experiment_runs_through_the_same_dag(tmp_path):
    ran(tmp_path, f"engine.python={PYTHON}", "engine.cache_gib=0.25")
    log = tmp_path / "vllm-server.log"
    assert starts_in(log) == 1
    # Each condition's policy after one round trains, that after two is scored on both splits.
    assert log.read_text().count("Loaded new LoRA adapter") == 6


@contextmanager
def standing_server(log):
    """A vLLM server on a port, as sdcore/engines/README.md starts one; its address and key."""
    url, key = f"http://127.0.0.1:{free_port()}", "a-key-of-our-own"
    own = {"VLLM_API_KEY": key, "VLLM_CPU_KVCACHE_SPACE": "1"}
    port = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    lora = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--max-cpu-loras", "8"]
    model = ["--model", str(BASE), "--dtype", "float32", "--generation-config", "vllm"]
    watch = [sys.executable, "-I", supervise.__file__, str(os.getpid())]
    serve = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*watch, *serve, *model, *port, *lora, "--skip-tokenizer-init", *CPU_FLAGS],
            env=ENVIRONMENT | os.environ | own, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        assert answers(f"{url}/health", process, 300), log.read_text()
        yield url, key
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.night
@needs_vllm
@pytest.mark.slow
def test_two_workers_share_a_standing_server(tmp_path):
    log = tmp_path / "standing.log"
    with standing_server(log) as (url, key):
        where = [f"engine.urls=['{url}']", "--workers", "2"]
        ran(tmp_path / "runs", *where, environment={"VLLM_API_KEY": key})
    assert starts_in(log) == 1
    assert log.read_text().count("Loaded new LoRA adapter") == 6
    files = [each for each in tmp_path.rglob("*") if each.is_file() and each.stat().st_size < 1e8]
    assert not [each for each in files if key.encode() in each.read_bytes()]


def test_a_missing_environment_says_how_it_is_made(tmp_path):
    settings = SETTINGS.model_copy(update={"python": tmp_path / "python"})
    server = VllmServer(settings, dtype="float32", lora_rank=None, log_path=tmp_path / "log")
    with pytest.raises(EngineError, match="make vllm"):
        server.ensure(BASE)
    server.close()


def test_the_cause_is_the_first_error_of_the_log():
    before = "WARNING This can cause errors like `OSError: [Errno 24]`\n"
    error = "(Worker) ERROR ValueError: no memory\n  try less\nRuntimeError: engine failed"
    assert cause(f"{before}{error}\nbye") == error
    assert cause("a\nb\nc\nd") == "b\nc\nd"


def test_a_rank_is_served_by_the_next_one_that_there_are_kernels_for():
    assert [kernel_rank(rank) for rank in (1, 4, 64, 65)] == [1, 8, 64, 128]
    with pytest.raises(EngineError, match="rank"):
        kernel_rank(513)
