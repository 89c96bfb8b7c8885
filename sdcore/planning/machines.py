"""The machines that a plan is for: peak speeds, memory, and the shares of them that are reached.

Every figure has its source beside it: a data sheet, a measurement, or the word "assumed".
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sdcore.errors import ConfigError

GIB = 2**30
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """Devices of one kind in one machine, and how fast sdcore's stages run on them.

    Attributes:
        name: such as `h100x8`.
        gpu: the devices are GPUs.
        count: devices; the cores of a machine without GPU are one device.
        flops: peak of a device's matrix products, FLOP/s; of a GPU in bfloat16.
        single: the same in float32.
        bandwidth: of a device's memory, bytes/s.
        memory: of a device, bytes.
        train_share: of the peak, in a training step of wide matrices.
        decode_share: of the peak or of the bandwidth, whichever bounds a decoding step.
        activation: seconds per element of a hidden state, layer and forward pass, for all that is
            no matrix product: norms, activations, softmax. A share of the peak that was measured
            with them has them inside; it is 0 then.
        launch: seconds per layer and pass, however small its tensors.
        draw: seconds per decoding pass for the choice of the tokens.
        handling: seconds per rollout outside the model: prompt, grading, rows.
        round: seconds per round outside the model: task runs, transaction, digest of the weights.
        start: seconds from the command to the first stage, and of the report at the end.
        disk: bytes/s of a checkpoint, its digests included.
        source: where these come from.
    """

    name: str
    gpu: bool
    count: int
    flops: float
    single: float
    bandwidth: float
    memory: float
    train_share: float
    decode_share: float
    activation: float
    launch: float
    draw: float
    handling: float
    round: float
    start: float
    disk: float
    source: str

    def computing_in(self, dtype: str) -> "Machine":
        """Return the machine with the speeds that it has in a dtype."""
        if dtype == "bfloat16" or self.single == self.flops:
            return self
        note = "float32, half of its peak assumed in training"
        return replace(
            self, flops=self.single, train_share=SINGLE_SHARE, source=f"{self.source}; {note}"
        )


CORE_FLOPS = 94e9
"""Per core: 188 GFLOP/s were measured on two (AVX-512, float32, tests/benchmarks/README.md)."""

CPU = Machine(
    name="cpu",
    gpu=False,
    count=1,
    flops=2 * CORE_FLOPS,
    single=2 * CORE_FLOPS,
    bandwidth=20e9,  # assumed
    memory=8 * GIB,  # replaced by what the machine has
    train_share=0.8,  # with `activation`, gives the 62 % of tests/benchmarks/mfu.py
    decode_share=0.5,  # assumed; `measured` puts the machine's own in its place
    activation=2.7e-8,  # fitted to the 180 optimizer steps of a finished quickstart
    launch=5e-4,  # fitted to its sampling: 0.28 s per batch of 57 tokens and 3 layers ...
    draw=3e-3,  # ... of which this is the larger part
    handling=3e-4,  # the same: 1.3 ms per rollout less its tokens
    round=0.2,  # the same: task runs, digest, commit
    start=18.0,  # the same: 11 s before the first stage, 7 s of the report
    disk=5e8,  # assumed
    source="stated defaults: 94 GFLOP/s per AVX-512 core, stages as in a finished quickstart",
)

_GPU = replace(
    CPU,
    gpu=True,
    train_share=0.165,  # measured: 163 TFLOP/s in a LoRA step of Qwen3-1.7B, H200
    decode_share=0.5,  # assumed
    activation=0.0,  # inside train_share
    launch=1e-4,  # assumed: kernels of a layer, captured in a graph by vLLM
    draw=1e-3,  # assumed
    start=120.0,  # assumed: vLLM loads and compiles
)


def _gpu(
    name: str, tera_flops: float, single: float, tera_bytes: float, gib: float, sheet: str
) -> Machine:
    """A GPU: bfloat16 peak (dense) and float32 peak, bandwidth and usable memory of its sheet."""
    source = f"{sheet}; training share measured on a Qwen3-1.7B LoRA step, sampling share assumed"
    return replace(
        _GPU,
        name=name,
        flops=tera_flops * 1e12,
        single=single * 1e12,
        bandwidth=tera_bytes * 1e12,
        memory=gib * GIB,
        source=source,
    )


GPUS = {
    "a100": _gpu("a100", 312, 19.5, 2.04, 79, "NVIDIA A100 80 GB SXM data sheet"),
    "h100": _gpu("h100", 989, 67, 3.35, 79, "NVIDIA H100 SXM data sheet"),
    "h200": _gpu("h200", 989, 67, 4.8, 140, "NVIDIA H200 SXM data sheet"),
}
SINGLE_SHARE = 0.5  # of a GPU's float32 peak that a training step reaches; assumed


def named(name: str) -> Machine:
    """Return a machine by name: a GPU of `GPUS` and how many, such as `h100x8`; or `cpu`.

    Raises:
        ConfigError: there is no such machine.
    """
    if name == "cpu":
        return here()
    match = re.fullmatch(r"([a-z]\w*?)(?:x([1-9]\d{0,3}))?", name)
    if match is None or match[1] not in GPUS:
        raise ConfigError(
            "no such machine",
            got=name,
            expected=f"cpu, or one of {', '.join(sorted(GPUS))} and how many, such as h100x8",
            where="--machine",
        )
    return replace(GPUS[match[1]], name=name, count=int(match[2] or 1))


def here() -> Machine:
    """Return this machine without its GPUs, at the stated speed per core."""
    import psutil  # noqa: PLC0415 - the command's help needs no memory

    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    cores = int(outermost) if outermost.isdecimal() and int(outermost) else _cores()
    memory = min([psutil.virtual_memory().total, *_memory_limits()])
    name = f"cpu, {cores} core{'s' if cores > 1 else ''}"
    return replace(
        CPU, name=name, flops=cores * CORE_FLOPS, single=cores * CORE_FLOPS, memory=memory
    )


def unmeasured(device: str) -> Machine:
    """Return this machine, by data sheets: its GPUs with their own memory, else `here`.

    Raises:
        ConfigError: the GPU is not known, or is a slice of one.
    """
    import torch  # noqa: PLC0415 - seconds

    if device == "cpu" or not torch.cuda.is_available():
        return here()
    kind = torch.cuda.get_device_name(0).lower()
    words = re.findall(r"[a-z0-9]+", kind)  # a GH200 is no H200; a MIG slice has no known speed
    known = next((name for name in GPUS if name in words and "mig" not in words), None)
    if known is None:
        raise ConfigError(
            "no speeds of this GPU are known",
            got=kind,
            expected=", ".join(sorted(GPUS)),
            fix="name a machine with --machine",
        )
    count = torch.cuda.device_count()
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    return replace(GPUS[known], name=f"{known}x{count}", count=count, memory=memory)


def present(width: int, inner: int, device: str, dtype: str) -> Machine:
    """Return this machine: its GPUs by their data sheet, its cores measured in the model's dtype.

    Raises:
        ConfigError: the GPU is not known.
    """
    machine = unmeasured(device)
    return machine if machine.gpu else measured(machine, width, inner, dtype)


def measured(machine: Machine, width: int, inner: int, dtype: str) -> Machine:
    """Return a machine without GPU with the speeds that it has now, in about a second.

    Args:
        machine: what is not measured.
        width: of the model's hidden states.
        inner: of its MLP.
        dtype: of the model. Processors without instructions for bfloat16 emulate it slowly.
    """
    import torch  # noqa: PLC0415 - seconds

    product = torch.nn.functional.linear  # as a layer computes it: the weights are transposed
    left, right = torch.randn(2, 1024, 1024)
    single = flops = 2 * 1024**3 / _fastest(lambda: product(left, right))
    rows, matrix = torch.randn(64, width), torch.randn(inner, width)
    if dtype != "float32":
        left, right, rows, matrix = (
            each.to(getattr(torch, dtype)) for each in (left, right, rows, matrix)
        )
        flops = 2 * 1024**3 / _fastest(lambda: product(left, right))
    decoding = 2 * 64 * width * inner / _fastest(lambda: product(rows, matrix))
    waiting = os.getloadavg()[0] - 1  # this process is the one
    busy = f"; {waiting:.0f} other processes are at work" if waiting > 1 else ""
    faster = (
        f"; {single / 1e9:.0f} in float32, so model.dtype = 'float32' would be faster"
        if single > flops
        else ""
    )
    # All else is taken to be as much slower as float32 products are, but no faster: where these ran
    # at 315 GFLOP/s instead of 188, it took the same time.
    slower = max(1.0, machine.flops / single)
    return replace(
        machine,
        flops=flops,
        single=flops,
        decode_share=min(1.0, decoding / flops),
        activation=machine.activation * slower,
        launch=machine.launch * slower,
        draw=machine.draw * slower,
        handling=machine.handling * slower,
        round=machine.round * slower,
        start=machine.start * slower,
        source=f"measured now: {flops / 1e9:.0f} GFLOP/s in a {dtype} product of 1024 x 1024, "
        f"{decoding / flops:.0%} of them in a decoding step's{faster}; the rest in proportion to a "
        f"finished quickstart's{busy}",
    )


def _fastest(work: Callable[[], object], seconds: float = 0.15) -> float:
    """Seconds of the fastest of many calls."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _memory_limits() -> list[int]:
    """Return the limits of memory of this process's control group (v2) and of those above it."""
    try:
        line = Path("/proc/self/cgroup").read_text("utf-8").splitlines()[-1]
    except (OSError, IndexError):  # no Linux
        return []
    own = _CGROUPS / line.partition("::")[2].lstrip("/")
    found = list[int]()
    for folder in (own, *own.parents):
        try:
            said = (folder / "memory.max").read_text("utf-8").strip()
        except OSError:  # the topmost has none
            continue
        found += [int(said)] if said.isdecimal() else []  # else "max"
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
