"""Model FLOP/s of a step over the machine's GEMM peak, and how cost grows with length and batch.

FLOPs are the model's: 2 a weight and token forward, 4 backward, of real tokens only; padding,
attention scores, softmax and recomputation count as nothing, so the share is a lower bound. The
peak is measured again before each step, because a shared machine is not always equally fast.
"""

import statistics

import _steps
import torch
from _measure import exponent, report, seconds

REPEATS = 5


def gemm_peak() -> float:
    """FLOP/s of a large float32 matrix product, the best of several."""
    left, right = torch.randn(2, 2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: left @ right) for _ in range(8))


def model_flops(lengths: tuple[int, ...]) -> float:
    """Of a step on all weights: student forward and backward, teacher forward, both heads."""
    model = _steps.smollm2()
    head = model.lm_head.weight.numel()
    body = sum(weight.numel() for weight in model.parameters()) - head  # the embedding is tied
    response = sum(lengths)
    student = response + _steps.PROMPT * len(lengths)
    teacher = response + _steps.TEACHER_PROMPT * len(lengths)
    return body * (6 * student + 2 * teacher) + head * (6 + 2) * response


def shares(lengths: tuple[int, ...]) -> list[dict[str, float]]:
    """A step's share of the peak measured just before it, in turns."""
    work = _steps.ours(_steps.rollouts(lengths), lora=None)
    work()
    pairs = [(gemm_peak(), seconds(work)) for _ in range(REPEATS)]
    flops = model_flops(lengths)
    return [
        {"share": round(flops / spent / peak, 4), "gemm_peak_flops": peak, "step_seconds": spent}
        for peak, spent in pairs
    ]


def measured(lengths: tuple[int, ...]) -> float:
    work = _steps.ours(_steps.rollouts(lengths), lora=None)
    work()
    return statistics.median(seconds(work) for _ in range(REPEATS))


def main() -> None:
    pairs = shares(_steps.LENGTHS)
    share = statistics.median(pair["share"] for pair in pairs)
    by_length = {n: measured((n,) * 4) for n in (64, 128, 256)}
    by_batch = {n: measured((128,) * n) for n in (2, 4, 8)}
    report(
        "mfu",
        share,
        "at least 0.6 of the GEMM peak in float32",
        share >= 0.6,
        pairs=pairs,
        seconds_by_response_length=by_length,
        seconds_by_batch=by_batch,
        exponent_by_response_length=round(exponent((64, 256), [by_length[64], by_length[256]]), 3),
        exponent_by_batch=round(exponent((2, 8), [by_batch[2], by_batch[8]]), 3),
    )


if __name__ == "__main__":
    main()
