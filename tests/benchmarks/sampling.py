"""Tokens a second of both engines, each beside its own library on the same requests.

The transformers engine beside plain `generate`, and vLLM through sdcore (a server, HTTP, retries)
beside vLLM's own `LLM.generate` in its process. Eight samples a prompt, one batch, float32,
temperature 1; our engines and raw vLLM also return log-probs. Without vLLM's environment
(`make vllm`, or `$SDCORE_VLLM_PYTHON`) its half is left out, and said so.
Usage: sampling.py [model [prompts [max_new_tokens]]]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from _measure import report

from sdcore.config import EngineConfig, ModelConfig, PromptsConfig, SamplingConfig
from sdcore.engines import Request, Served
from sdcore.engines.endpoint import Endpoint
from sdcore.engines.server import VllmServer
from sdcore.engines.transformers import TransformersEngine
from sdcore.engines.vllm import VllmEngine
from sdcore.models import hub, policies
from sdcore.models.prompts import student_prompt
from sdcore.problems import arithmetic

SAMPLES, PAIRS, TARGET, VLLM_TARGET = 8, 5, 1.5, 0.95
ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SDCORE_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
SETTINGS = EngineConfig(kind="vllm", python=PYTHON, cache_gib=1)

Tokens = Callable[[], int]


def main(name: str = "builtin:smollm2", prompts: int = 8, new_tokens: int = 32) -> None:
    folder = hub.resolve(name)
    tokenizer = policies.load_tokenizer(folder)
    wording = PromptsConfig(student="{{ question }}")
    asked = [
        student_prompt(tokenizer, wording, problem.question)
        for problem in arithmetic.generate_problems(prompts, seed=0, holdout=True)
    ]
    requests = [
        Request(ids, SAMPLES * i + n) for i, ids in enumerate(asked) for n in range(SAMPLES)
    ]
    sampling = SamplingConfig(max_new_tokens=new_tokens, batch_size=len(requests))
    pairs = in_turns(*in_process(folder, requests, sampling))
    ratio = median_ratio(pairs)
    vllm = beside_vllm(folder, requests, sampling) if PYTHON.exists() else {}
    vllm_holds = vllm.get("vllm_ratio", VLLM_TARGET) >= VLLM_TARGET
    report(
        "sampling",
        ratio,
        f"at least {TARGET} times the tokens a second of plain generate, n = {SAMPLES}; "
        f"vLLM through sdcore at least {VLLM_TARGET} of raw vLLM",
        ratio >= TARGET and vllm_holds,
        model=name,
        engine_tokens_per_second=[round(ours) for ours, _ in pairs],
        generate_tokens_per_second=[round(generate) for _, generate in pairs],
        **(vllm or {"vllm_left_out": "no .venv-vllm: run `make vllm`"}),
    )


def in_process(
    folder: Path, requests: list[Request], sampling: SamplingConfig
) -> tuple[Tokens, Tokens]:
    """The transformers engine, and plain `generate`."""
    config = ModelConfig(name=str(folder), device="cpu")
    tokenizer, ends = policies.load_tokenizer(folder), policies.end_ids(folder)
    engine = TransformersEngine(policies.load_policy(folder, config), end_ids=ends)
    plain = policies.load_policy(folder, config)
    prompts = [list(request.prompt_ids) for request in requests[::SAMPLES]]
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")

    def ours() -> int:
        return sum(len(sample.token_ids) for sample in engine.generate(requests, sampling))

    def rival() -> int:
        output = plain.generate(
            **padded,
            do_sample=True,
            top_k=0,
            num_return_sequences=SAMPLES,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
        ending = torch.isin(output[:, padded["input_ids"].shape[1] :], torch.tensor(ends)).int()
        return int((ending.cumsum(1) - ending == 0).sum())  # up to the first end token

    return ours, rival


def beside_vllm(
    folder: Path, requests: list[Request], sampling: SamplingConfig
) -> dict[str, object]:
    """Figures of vLLM through sdcore and by itself, both alive at a time, measured in turns."""
    job = raw_job(folder, requests, sampling, policies.end_ids(folder))
    with through_vllm(folder, "float32") as engine, raw_vllm(job) as rival:
        pairs = in_turns(
            lambda: sum(len(c.token_ids) for c in engine.generate(requests, sampling)), rival
        )
    return {
        "vllm_ratio": round(median_ratio(pairs), 4),
        "vllm_tokens_per_second": [round(ours) for ours, _ in pairs],
        "raw_vllm_tokens_per_second": [round(raw) for _, raw in pairs],
    }


@contextmanager
def through_vllm(folder: Path, dtype: str) -> Iterator[VllmEngine]:
    """The engine on a server of its own that has a model folder loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "vllm.log"
        server = VllmServer(SETTINGS, dtype=dtype, lora_rank=None, log_path=log)
        engine = VllmEngine(
            [Endpoint(server.url, server.key, server)],
            end_ids=policies.end_ids(folder),
            concurrency=SETTINGS.concurrency,
        )
        engine.load(Served("base", folder, folder))
        try:
            yield engine
        finally:
            engine.close()


def raw_job(
    folder: Path, requests: list[Request], sampling: SamplingConfig, ends: tuple[int, ...]
) -> dict[str, object]:
    """The same requests and settings for `LLM` itself."""
    return {
        "engine": {
            "model": str(folder),
            "dtype": "float32",
            "skip_tokenizer_init": True,
            "enable_prefix_caching": True,
            "enable_chunked_prefill": torch.cuda.is_available(),
            "enforce_eager": not torch.cuda.is_available(),
            "generation_config": "vllm",
            "kv_cache_memory_bytes": int(SETTINGS.cache_gib * 2**30),
            "max_num_seqs": SETTINGS.concurrency,
        },
        "sampling": {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": list(ends),
            "logprobs": 0,
            "detokenize": False,
        },
        "prompts": [list(request.prompt_ids) for request in requests],
        "seeds": [request.seed for request in requests],
    }


@contextmanager
def raw_vllm(job: dict[str, object]) -> Iterator[Tokens]:
    quiet = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with subprocess.Popen(
        [PYTHON, Path(__file__).with_name("_vllm_raw.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | quiet,
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(job) + "\n")

        def generate() -> int:
            print("again", file=process.stdin, flush=True)
            for line in process.stdout:  # vLLM's log lines come this way too
                if line.startswith('{"tokens"'):
                    return int(json.loads(line)["tokens"])
            raise RuntimeError("raw vLLM ended")

        yield generate
        process.stdin.close()


def in_turns(ours: Tokens, rival: Tokens) -> list[tuple[float, float]]:
    """Tokens a second of both, in turns, after one warm-up each."""
    ours(), rival()
    return [(rate(ours), rate(rival)) for _ in range(PAIRS)]


def median_ratio(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(ours / rival for ours, rival in pairs)


def rate(sample: Tokens) -> float:
    """Tokens a second."""
    started = time.perf_counter()
    return sample() / (time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
