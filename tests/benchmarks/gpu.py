"""On a GPU: the loss, a distillation step, the engine and the quickstart, each beside its rival.

One JSON line per row of the table in `sdcore/training/README.md`. Rival and sdcore run in turns in
one process; times are medians, memory is the allocator's peak. With `--toy` the same code runs on
the CPU at toy sizes, whose figures mean nothing; so it is tested.
Usage: gpu.py [--toy] [loss] [step] [engine] [quickstart]
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import _steps
import torch
from _measure import alternating, ratio, report
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sdcore.config import DistillConfig, SamplingConfig
from sdcore.engines import Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.training.losses import Distillation
from sdcore.training.projection import Head, HeadInput, chunked_loss
from sdcore.training.trainer import Example

Work = Callable[[], float]


@dataclass(frozen=True)
class Sizes:
    """What is measured, on a GPU or as a toy."""

    device: str
    card: str
    tokens: tuple[int, ...]  # of the loss
    vocabulary: int
    width: int
    layers: int
    lengths: tuple[int, ...]  # response tokens of the step's rollouts
    prompt: int
    teacher_prompt: int
    rows: int  # of the engine
    new_tokens: int
    pairs: int


TOY = Sizes("cpu", "toy", (40, 80), 640, 32, 2, (9, 17), 8, 20, 4, 4, 1)


def real() -> Sizes:
    """Qwen3-1.7B's shape."""
    lengths = (300, 512, 768, 1024, 1280, 1536, 1792, 2048)
    card = torch.cuda.get_device_name()
    return Sizes("cuda", card, (2048, 4096), 151_936, 2048, 28, lengths, 150, 1500, 256, 128, 5)


def model(sizes: Sizes) -> PreTrainedModel:
    """Random weights in bfloat16: time and memory do not depend on them."""
    heads = max(1, sizes.width // 128)
    config = Qwen3Config(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, intermediate_size=3 * sizes.width,
        num_hidden_layers=sizes.layers, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2), head_dim=min(128, sizes.width),
        max_position_embeddings=40_960, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(sizes.device):
        return Qwen3ForCausalLM(config).bfloat16().eval().requires_grad_(False)


def waiting(work: Work, sizes: Sizes) -> Work:
    """The work until the device has done it."""

    def done() -> float:
        value = work()
        if sizes.device == "cuda":
            torch.cuda.synchronize()
        return value

    return done


def peak(work: Work, sizes: Sizes) -> int:
    """Most bytes that the allocator held beyond those before the work; 0 without a GPU."""
    if sizes.device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def gemm_peak(sizes: Sizes) -> float:
    """FLOP/s of a large product in bfloat16, the best of several."""
    size = 8192 if sizes.device == "cuda" else 64
    left, right = torch.randn(2, size, size, device=sizes.device).bfloat16()
    product = waiting(lambda: float(bool((left @ right).shape)), sizes)
    product()
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        product()
        spent.append(time.perf_counter() - started)
    return 2 * size**3 / min(spent)


def loss_rows(sizes: Sizes) -> None:
    """The loss and its gradients from hidden states, against TRL's on whole logits."""
    cases = (("forward_kl", False, 0.7), ("forward_kl", True, 0.8), ("jsd", False, 0.4))
    for divergence, trained, target in cases:
        for tokens in sizes.tokens:
            ours, trl, exact = losses(sizes, divergence, tokens, trained=trained)
            pairs = alternating(waiting(trl, sizes), waiting(ours, sizes), sizes.pairs)
            unit = 4 * tokens * sizes.vocabulary
            memory = {
                name: peak(work, sizes) / unit for name, work in (("sdcore", ours), ("trl", trl))
            }
            kept = memory["sdcore"] <= 0.5 or trained
            report(
                f"gpu loss {divergence}, {'trained' if trained else 'frozen'} head, T={tokens}",
                ratio(pairs),
                f"at most {target} of TRL's time, 0.5 of a [T, V] float32 tensor at the peak",
                ratio(pairs) <= target and kept,
                card=sizes.card,
                seconds_of_rival_and_sdcore=pairs,
                peak_tensors={name: round(value, 3) for name, value in memory.items()},
                losses={"exact": exact, "sdcore": ours(), "trl": trl()},
            )


def losses(
    sizes: Sizes, divergence: str, tokens: int, *, trained: bool
) -> tuple[Work, Work, float]:
    """sdcore's work, TRL's, and the loss in float64 by plain PyTorch."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    drawn = torch.Generator(sizes.device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=drawn, device=sizes.device)

    student = normal(tokens, sizes.width)
    teacher = (student + 0.3 * normal(tokens, sizes.width)).bfloat16()
    student = student.bfloat16().requires_grad_()
    head = (normal(sizes.vocabulary, sizes.width) / sizes.width**0.5).bfloat16()
    head.requires_grad_(trained)
    ids_T = torch.randint(sizes.vocabulary, (tokens,), generator=drawn, device=sizes.device)
    weights_T = torch.full((tokens,), 1 / tokens, device=sizes.device)
    settings = DistillConfig(
        objective="distill", context="none", learning_rate=1e-3, divergence=divergence
    )
    sides = HeadInput(student, Head(head)), [HeadInput(teacher, Head(head.detach()))]

    def ours() -> float:
        student.grad = head.grad = None
        loss, *_ = chunked_loss(*sides, ids_T, weights_T, Distillation(settings))
        loss.backward()
        return loss.item()

    def trl() -> float:
        student.grad = head.grad = None
        with torch.no_grad():
            teacher_logits = teacher @ head.T
        loss = GKDTrainer.generalized_jsd_loss(
            (student @ head.T)[None], teacher_logits[None],
            beta=0.5 if divergence == "jsd" else 0.0, reduction="sum",
        )  # fmt: skip
        loss = loss / tokens
        loss.backward()
        return loss.item()

    return ours, trl, exact_loss(student, teacher, head, divergence)


@torch.no_grad()
def exact_loss(
    student: torch.Tensor, teacher: torch.Tensor, head: torch.Tensor, divergence: str
) -> float:
    """Mean loss in float64, a few tokens at a time."""
    total = 0.0
    for rows_q, rows_t in zip(student.split(64), teacher.split(64)):
        log_q, log_t = (
            (rows.double() @ head.T.double()).log_softmax(-1) for rows in (rows_q, rows_t)
        )
        if divergence == "forward_kl":
            total += float((log_t.exp() * (log_t - log_q)).sum())
        else:
            log_m = torch.logaddexp(log_q, log_t) - torch.tensor(2.0).log()
            halves = log_t.exp() * (log_t - log_m) + log_q.exp() * (log_q - log_m)
            total += float(halves.sum()) / 2
    return total / len(student)


def step_row(sizes: Sizes) -> None:
    """A LoRA step on rollouts of different lengths; TRL takes one sequence at a time."""
    examples = rollouts(sizes)
    ours = waiting(_steps.ours(examples, build=lambda: model(sizes)), sizes)
    each = _steps.trl([[example] for example in examples], build=lambda: model(sizes))
    trl = waiting(each, sizes)
    pairs = alternating(trl, ours, min(sizes.pairs, 3))
    flops, top = step_flops(sizes), gemm_peak(sizes)
    share = flops / statistics.median(second for _, second in pairs) / top
    memory = {"sdcore": peak(ours, sizes), "trl": peak(trl, sizes)}
    report(
        "gpu step, LoRA r = 64",
        ratio(pairs),
        "at most 0.35 of TRL's time, 0.4 of the GEMM peak, at most TRL's memory",
        ratio(pairs) <= 0.35 and share >= 0.4 and memory["sdcore"] <= memory["trl"],
        card=sizes.card,
        seconds_of_rival_and_sdcore=pairs,
        share_of_gemm_peak=round(share, 4),
        gemm_peak_flops=top,
        peak_bytes_beyond_the_weights=memory,
    )


def rollouts(sizes: Sizes) -> list[Example]:
    drawn = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(sizes.vocabulary, (count,), generator=drawn).tolist()

    return [
        Example(str(n), ids(sizes.prompt), ids(length), ids(sizes.teacher_prompt))
        for n, length in enumerate(sizes.lengths)
    ]


def step_flops(sizes: Sizes) -> float:
    """Of a step whose weights are frozen: 2 forward and 2 backward per weight and token."""
    with torch.device("meta"):
        shape = model(Sizes(**vars(sizes) | {"device": "meta"}))
    head = sizes.vocabulary * sizes.width
    body = sum(weight.numel() for weight in shape.parameters()) - head
    response = sum(sizes.lengths)
    student = response + sizes.prompt * len(sizes.lengths)
    teacher = response + sizes.teacher_prompt * len(sizes.lengths)
    return body * (4 * student + 2 * teacher) + head * (4 + 2) * response


def engine_row(sizes: Sizes) -> None:
    """Tokens per second of the engine in this process, against plain `generate`."""
    samples = 8 if sizes.rows >= 8 else 2
    drawn = torch.Generator().manual_seed(0)
    prompts = torch.randint(
        2, sizes.vocabulary, (sizes.rows // samples, sizes.prompt), generator=drawn
    )
    requests = [
        Request(tuple(prompt), samples * i + n)
        for i, prompt in enumerate(prompts.tolist())
        for n in range(samples)
    ]
    engine, plain = TransformersEngine(model(sizes), end_ids=[0]), model(sizes)
    sampling = SamplingConfig(max_new_tokens=sizes.new_tokens, batch_size=sizes.rows)
    ids = prompts.to(sizes.device)

    def ours() -> float:
        return float(len(engine.generate(requests, sampling)))

    def rival() -> float:
        drawn = plain.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
            num_return_sequences=samples, max_new_tokens=sizes.new_tokens,
            eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        return float(len(drawn))

    pairs = alternating(waiting(rival, sizes), waiting(ours, sizes), min(sizes.pairs, 2))
    speed = 1 / ratio(pairs)
    tokens = sizes.rows * sizes.new_tokens
    report(
        f"gpu engine, {sizes.rows} rows of {sizes.new_tokens} tokens",
        speed,
        "at least twice the tokens per second of plain generate",
        speed >= 2,
        card=sizes.card,
        tokens_per_second_of_rival_and_sdcore=[[tokens / s for s in pair] for pair in pairs],
    )


def quickstart_row(sizes: Sizes) -> None:
    """The whole command, as a user runs it."""
    command = shutil.which("sdcore")
    if command is None:
        print('{"name": "gpu quickstart", "left_out": "no command sdcore"}')
        return
    with tempfile.TemporaryDirectory() as workspace:
        started = time.perf_counter()
        words = [command, "run", "quickstart", "--quick", "--workspace", workspace]
        subprocess.run(words, check=True, capture_output=True)
        spent = time.perf_counter() - started
    report("gpu quickstart", spent, "at most 30 s", spent <= 30, card=sizes.card)


ROWS = {"loss": loss_rows, "step": step_row, "engine": engine_row, "quickstart": quickstart_row}


def main(*words: str) -> None:
    toy = "--toy" in words
    if not toy and not torch.cuda.is_available():
        print('{"name": "gpu", "left_out": "no CUDA device"}')
        return
    chosen = [word for word in words if word != "--toy"] or list(ROWS)
    sizes = TOY if toy else real()
    for name in chosen:
        ROWS[name](sizes)
        if sizes.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(*sys.argv[1:])
