"""Tokens a second of the transformers engine, and of plain `generate` on the same prompts.

Eight samples a prompt, one batch, float32, temperature 1; the engine also returns log-probs.
Usage: sampling.py [model [prompts [max_new_tokens]]]
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from _measure import report

from sdcore import arithmetic, hub, policies
from sdcore.config import ModelConfig, PromptsConfig, SamplingConfig
from sdcore.engines import Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.prompts import prompt_ids, student_messages

SAMPLES, PAIRS, TARGET = 8, 5, 1.5


def main(name: str = "builtin:tiny-solver", prompts: int = 128, new_tokens: int = 96) -> None:
    folder, config = hub.resolve(name), ModelConfig(name=name, device="cpu")
    tokenizer, ends = policies.load_tokenizer(folder), policies.end_ids(folder)
    wording = PromptsConfig(student="{{ question }}")
    questions = [p.question for p in arithmetic.generate_problems(prompts, seed=0, holdout=True)]
    asked = [prompt_ids(tokenizer, student_messages(wording, question)) for question in questions]
    plain = policies.load_policy(folder, config)
    engine = TransformersEngine(policies.load_policy(folder, config), end_ids=ends)
    sampling = SamplingConfig(max_new_tokens=new_tokens, batch_size=prompts * SAMPLES)
    requests = [
        Request(ids, SAMPLES * i + n) for i, ids in enumerate(asked) for n in range(SAMPLES)
    ]
    padded = tokenizer.pad(
        {"input_ids": [list(ids) for ids in asked]}, padding_side="left", return_tensors="pt"
    )

    def ours() -> int:
        return sum(len(sample.token_ids) for sample in engine.generate(requests, sampling))

    def rival() -> int:
        output = plain.generate(
            **padded,
            do_sample=True,
            top_k=0,
            num_return_sequences=SAMPLES,
            max_new_tokens=new_tokens,
            eos_token_id=list(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
        ending = torch.isin(output[:, padded["input_ids"].shape[1] :], torch.tensor(ends)).int()
        return int((ending.cumsum(1) - ending == 0).sum())  # up to the first end token

    ours(), rival()  # warm up
    pairs = [(rate(ours), rate(rival)) for _ in range(PAIRS)]
    ratio = statistics.median(engine / generate for engine, generate in pairs)
    report(
        "sampling",
        ratio,
        f"at least {TARGET} times the tokens a second of plain generate, n = {SAMPLES}",
        ratio >= TARGET,
        model=name,
        engine_tokens_per_second=[round(engine) for engine, _ in pairs],
        generate_tokens_per_second=[round(generate) for _, generate in pairs],
    )


def rate(sample: Callable[[], int]) -> float:
    """Tokens a second."""
    started = time.perf_counter()
    return sample() / (time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
