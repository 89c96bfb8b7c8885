"""What the benchmarks share: paired repetitions, peak bytes of tensors, and the line they print."""

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternating(rival: Work, ours: Work, pairs: int) -> list[tuple[float, float]]:
    """Seconds of rival and ours in turns, so that a change of the machine's load meets both."""
    rival(), ours()  # warm up
    return [(seconds(rival), seconds(ours)) for _ in range(pairs)]


def ratio(pairs: list[tuple[float, float]]) -> float:
    """Median over the pairs of ours to the rival's."""
    return statistics.median(ours / rival for rival, ours in pairs)


def peak_bytes(work: Work) -> int:
    """Most bytes of tensors alive at a time that the work itself allocated."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Slope of log time by log size, 1 where cost is linear."""
    return math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])


def report(name: str, headline: float, target: str, holds: bool, **figures: object) -> None:
    line = {"name": name, "headline": round(headline, 4), "target": target, "holds": holds}
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(line | about | figures))
