"""A vLLM server that a run starts: the devices that it is split over, and their memory."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from sdcore.config import Experiment
from sdcore.planning.lengths import Lengths
from sdcore.planning.machines import GIB
from sdcore.planning.shapes import BYTES, Shape

# A server's activations, graphs and CUDA context beside weights and cache; assumed, not measured.
BESIDE = 3.0 * GIB
PROCESSOR_CACHE = 4 * GIB  # where there is no GPU and engine.cache_gib is not set
BLOCK = 128  # positions; vLLM hands the cache out in blocks of 16, on processors of 128


@dataclass(frozen=True)
class Serving:
    """Memory that a server takes on each of its devices.

    Attributes:
        weights: bytes of its part of the model.
        cache: bytes of keys and values, at least 0.
        held: positions of one sequence that the caches of all its devices hold.
        context_length: positions of prompt and response that it is started with.
    """

    weights: float
    cache: float
    held: int
    context_length: int

    @property
    def total(self) -> float:
        """Bytes of everything."""
        return self.weights + self.cache + BESIDE

    def share(self, device: float) -> float:
        """Return the part of a device that it takes, for `--gpu-memory-utilization`.

        vLLM looks whether so much is free before it loads the model; without a figure it wants 92 %
        of the device.
        """
        return min(1.0, ceil(1000 * self.total / device) / 1000)


def starts_server(experiment: Experiment) -> bool:
    """Return whether the run starts a vLLM server of its own."""
    return experiment.engine.kind == "vllm" and not experiment.engine.urls


def tensor_parallel(experiment: Experiment) -> int:
    """Return the devices that a server splits the model over."""
    words = " ".join(experiment.engine.arguments)
    match = re.search(r"--tensor-parallel-size[= ](\d+)|(?:^| )-tp[= ](\d+)", words)
    return int(match[1] or match[2]) if match else 1


def sampling_devices(experiment: Experiment) -> int:
    """Return how many devices draw samples: the servers, each over its tensor-parallel share."""
    engine = experiment.engine
    if engine.kind != "vllm":
        return 1
    return max(1, len(engine.urls)) * tensor_parallel(experiment)


def fixed_bytes(experiment: Experiment, shape: Shape) -> float:
    """Return what a server takes of each device whatever its cache: weights, and what is beside."""
    size = shape.parameters * BYTES[experiment.model.dtype]
    return size / tensor_parallel(experiment) + BESIDE


def serving_of(
    experiment: Experiment, shape: Shape, lengths: Lengths, room: float | None
) -> Serving:
    """Return what a server of our own takes of each of its devices.

    A cache that is not set is as large as `engine.concurrency` sequences need, and one of the
    context length, but not larger than the room. A context length that is not set is the model's
    own, or what the cache holds.

    Args:
        experiment: its settings.
        shape: of the model.
        lengths: of the prompts.
        room: bytes of a device that are left for the cache; None without a GPU.
    """
    engine, split = experiment.engine, tensor_parallel(experiment)
    token = shape.cache_bytes(experiment.model.dtype) / split
    longest = engine.context_length or shape.positions
    if engine.cache_gib is not None:
        cache = engine.cache_gib * GIB
    elif room is None:
        cache = float(PROCESSOR_CACHE)
    else:
        needed = max(engine.concurrency * sequence(experiment, lengths), longest)
        cache = max(0.0, min(needed * token, room))
    held = int(cache / token)
    return Serving(
        weights=fixed_bytes(experiment, shape) - BESIDE,
        cache=cache,
        held=held,
        context_length=engine.context_length or min(shape.positions, held - held % BLOCK),
    )


def sequence(experiment: Experiment, lengths: Lengths) -> float:
    """Return the positions of the student's prompt and the longest response that is allowed."""
    return lengths.prompt + experiment.sampling.max_new_tokens


def refusals(
    experiment: Experiment, shape: Shape, lengths: Lengths, serving: Serving
) -> Iterator[str]:
    """Say why vLLM would not start, or not serve the longest response, and what to set."""
    engine, needed = experiment.engine, sequence(experiment, lengths)
    dtype, split = experiment.model.dtype, tensor_parallel(experiment)
    fitting = _rounded_up(needed, 1024)
    if engine.context_length is not None and needed > engine.context_length:
        yield (
            f"engine.context_length = {engine.context_length:,} is less than prompt and response, "
            f"about {needed:,.0f}: set it to {fitting:,}"
        )
    wanted = engine.context_length or ceil(needed)
    if wanted <= serving.held:
        return
    missing = wanted * shape.cache_bytes(dtype) / split / GIB
    what = f"one sequence of {wanted:,} positions needs {missing:.1f} GiB of keys and values"
    shorter = fitting < wanted and f", or engine.context_length = {fitting}"
    if engine.cache_gib is not None:
        yield (
            f"vLLM does not start: engine.cache_gib = {engine.cache_gib:g}, and {what}: set "
            f"engine.cache_gib = {_rounded_up(missing, 1):g}{shorter or ''}"
        )
    else:
        yield (
            f"vLLM does not start: {serving.cache / GIB:.1f} GiB are left for its cache, and {what}"
            f": {_more_room(experiment)}{shorter or ''}"
        )


def _more_room(experiment: Experiment) -> str:
    """The setting that leaves a server more of the trainer's device."""
    training = experiment.training
    if not training.activation_checkpointing:
        return "set training.activation_checkpointing = true"
    if training.tokens_per_microbatch != "auto":
        return "set training.tokens_per_microbatch = 'auto'"
    if training.lora is None:
        return "add [training.lora]"
    return "let the run see a second GPU, which the server then has to itself"


def _rounded_up(number: float, unit: int) -> int:
    return -int(-number // unit) * unit
