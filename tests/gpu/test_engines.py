"""Log-probs of samples drawn on a GPU against a plain forward pass on it."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sdcore.config import EngineConfig, ModelConfig, SamplingConfig
from sdcore.engines import Request, Served, replay
from sdcore.engines.endpoint import Endpoint
from sdcore.engines.server import VllmServer
from sdcore.engines.transformers import TransformersEngine
from sdcore.engines.vllm import VllmEngine
from sdcore.models import hub, policies, weight_files
from tests.helpers.tiny import LORA, of_kind, save

NAME = "builtin:tiny-solver"
ROUNDING = 0.2  # nats between two ways to compute a log-prob in bfloat16
PYTHON = Path(__file__).parents[2] / ".venv-vllm/bin/python"
SAMPLING = SamplingConfig(max_new_tokens=24)


def requests():
    tokenizer = policies.load_tokenizer(hub.resolve(NAME))
    prompts = [tuple(tokenizer.encode(f"Compute {n}+{n + 3}-1.")) for n in (17, 42)]
    return [Request(prompt, seed) for seed in range(4) for prompt in prompts]


def policy(dtype="float32"):
    model = ModelConfig(name=NAME, device="cuda", dtype=dtype)
    return policies.load_policy(hub.resolve(NAME), model)


def adapted(dtype="float32"):
    """The policy with an adapter that changes what it writes."""
    changed = policies.attach_lora(policy(dtype), LORA, seed=0)
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator, device="cuda"))
    return changed


@torch.no_grad()
def largest_difference(scorer, asked, drawn):
    worst = 0.0
    for request, completion in zip(asked, drawn, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]], device="cuda")
        logprobs = scorer(ids, use_cache=False).logits[0].float().log_softmax(-1)
        at = torch.arange(len(request.prompt_ids) - 1, ids.shape[1] - 1, device="cuda")
        ours = torch.tensor(completion.logprobs, device="cuda")
        theirs = logprobs[at, ids[0, len(request.prompt_ids) :]]
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def test_the_engine_of_this_process():
    ends = policies.end_ids(hub.resolve(NAME))
    engine, changed = TransformersEngine(policy(), end_ids=ends), adapted()
    for served in (policy(), changed):
        engine.load(Served("p", None, hub.resolve(NAME), live=served))
        drawn = engine.generate(requests(), SAMPLING)
        assert largest_difference(served, requests(), drawn) < 1e-3


@pytest.mark.parametrize("kind", sorted(replay.MODELS))
def test_a_step_is_recorded_and_replayed(kind):
    model = of_kind(kind).to("cuda")
    engine = TransformersEngine(model, end_ids=[1])
    assert engine._replays
    asked = [Request((5, 6, 7, seed % 9), seed) for seed in range(40)]
    drawn = engine.generate(asked, SamplingConfig(max_new_tokens=30))  # rows leave on the way
    assert {each.finish_reason for each in drawn} == {"stop", "length"}
    assert largest_difference(model, asked, drawn) < 1e-3
    assert drawn == engine.generate(asked, SamplingConfig(max_new_tokens=30))


@contextmanager
def own_vllm(folder):
    """In bfloat16: vLLM's LoRA kernels for GPUs take no float32."""
    settings = EngineConfig(kind="vllm", python=PYTHON, cache_gib=1)
    log = folder / "vllm.log"
    server = VllmServer(settings, dtype="bfloat16", lora_rank=LORA.rank, log_path=log, share=0.1)
    ends = policies.end_ids(hub.resolve(NAME))
    engine = VllmEngine([Endpoint(server.url, server.key, server)], end_ids=ends, concurrency=8)
    try:
        yield server, engine
    finally:
        engine.close()


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: run `make vllm`")
def test_vllm_loads_an_adapter_without_a_restart(tmp_path):
    base, dtype, changed = hub.resolve(NAME), "bfloat16", adapted("bfloat16")
    save(changed, tmp_path / "adapter")
    with own_vllm(tmp_path) as (server, engine):
        engine.load(Served("base", base, base))
        drawn = engine.generate(requests(), SAMPLING)
        assert largest_difference(policy(dtype), requests(), drawn) < ROUNDING
        process = server._process
        engine.load(Served("adapted", tmp_path / "adapter", base))
        drawn = engine.generate(requests(), SAMPLING)
        assert largest_difference(changed, requests(), drawn) < ROUNDING
        assert largest_difference(policy(dtype), requests(), drawn) > ROUNDING
        assert server._process is process


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: run `make vllm`")
def test_vllm_reads_new_weights_without_a_restart(tmp_path):
    """The head is tied; on GPUs vLLM computes with the embedding's own weights."""
    base, dtype, changed = hub.resolve(NAME), "bfloat16", policy("bfloat16")
    with torch.no_grad():
        for weight in weight_files.gathered(changed).values():
            weight.add_(0.05 * torch.randn_like(weight))
    save(changed, tmp_path / "full")
    with own_vllm(tmp_path) as (server, engine):
        engine.load(Served("base", base, base))
        engine.generate(requests(), SAMPLING)
        process = server._process
        engine.load(Served("full", tmp_path / "full", base))
        drawn = engine.generate(requests(), SAMPLING)
        assert largest_difference(changed, requests(), drawn) < ROUNDING
        assert largest_difference(policy(dtype), requests(), drawn) > ROUNDING
        assert server._process is process
