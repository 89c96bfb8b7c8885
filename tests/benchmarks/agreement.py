"""How far an engine's log-probs are from the trainer's on the tokens that it drew, in nats.

For each model, dtype and engine, the mean and the largest difference of a first step on fresh
rollouts: what a run stores in `updates.logprob_drift` and `logprob_drift_max`. The headline is the
largest mean in units of the bound at which a run stops. vLLM's half needs its environment.
Usage: agreement.py [model ...]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from _measure import report
from sampling import PYTHON, through_vllm

from sdcore.config import (
    DistillConfig,
    LoraConfig,
    ModelConfig,
    PromptsConfig,
    SamplingConfig,
    TrainingConfig,
)
from sdcore.engines import Completion, Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.models import hub, policies
from sdcore.models.policies import Policy
from sdcore.models.prompts import student_prompt
from sdcore.problems import arithmetic
from sdcore.training.results import MISMATCH
from sdcore.training.trainer import Example, Trainer

MODELS, DTYPES = ("builtin:tiny-solver", "builtin:smollm2"), ("float32", "bfloat16")
PROMPTS, SAMPLES = 8, 4
SAMPLING = SamplingConfig(max_new_tokens=48)
LORA = LoraConfig(rank=8, alpha=16)


def main(*names: str) -> None:
    rows = [row for name in names or MODELS for dtype in DTYPES for row in compared(name, dtype)]
    worst = max(row["mean"] / MISMATCH[getattr(torch, row["dtype"])] for row in rows)
    left_out = {} if PYTHON.exists() else {"vllm_left_out": "no .venv-vllm: run `make vllm`"}
    report("agreement", worst, "at most 1", worst <= 1, differences=rows, **left_out)


def compared(name: str, dtype: str) -> list[dict[str, Any]]:
    """A row for each engine."""
    folder = hub.resolve(name)
    config, ends = ModelConfig(name=str(folder), dtype=dtype), policies.end_ids(folder)
    engine = TransformersEngine(policies.load_policy(folder, config), end_ids=ends)
    asked = requests(folder)
    drawn = {"transformers": engine.generate(asked, SAMPLING)}
    if PYTHON.exists():
        with through_vllm(folder, dtype) as served:
            drawn["vllm"] = served.generate(asked, SAMPLING)
    return [
        {"model": name, "dtype": dtype, "engine": kind}
        | difference(policies.load_policy(folder, config), asked, completions)
        for kind, completions in drawn.items()
    ]


def requests(folder: Path) -> list[Request]:
    tokenizer, wording = policies.load_tokenizer(folder), PromptsConfig(student="{{ question }}")
    problems = arithmetic.generate_problems(PROMPTS, seed=0, holdout=True)
    asked = [student_prompt(tokenizer, wording, problem.question) for problem in problems]
    return [Request(ids, SAMPLES * i + n) for i, ids in enumerate(asked) for n in range(SAMPLES)]


def difference(
    policy: Policy, asked: list[Request], drawn: list[Completion]
) -> dict[str, float | int | None]:
    examples = [
        Example(
            str(request.seed),
            request.prompt_ids,
            completion.token_ids,
            teacher_prompt_ids=request.prompt_ids,
            sampled_logprobs=completion.logprobs,
        )
        for request, completion in zip(asked, drawn, strict=True)
    ]
    condition = DistillConfig(objective="distill", context="none", learning_rate=1e-6)
    adapted = policies.attach_lora(policy, LORA, 0)
    trainer = Trainer(adapted, condition, TrainingConfig(lora=LORA), total_steps=1, seed=0)
    update = trainer.step(examples)
    tokens = sum(len(example.response_ids) for example in examples)
    return {"mean": update.logprob_drift, "max": update.logprob_drift_max, "tokens": tokens}


if __name__ == "__main__":
    main(*sys.argv[1:])
