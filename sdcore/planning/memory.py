"""Memory of a device, and of what does not fit into it the setting that makes it fit."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log2

from sdcore.config import (
    MOST_TOKENS,
    ConditionSettings,
    DistillConfig,
    Experiment,
    GrpoConfig,
    TrainingConfig,
    WarmupConfig,
)
from sdcore.planning.lengths import Lengths
from sdcore.planning.machines import GIB, Machine
from sdcore.planning.shapes import BYTES, Shape
from sdcore.planning.work import CRITIC_RATE, FLOAT, PADDING, teacher_of, trained_parameters

PROCESS = 0.9 * GIB  # Python, torch and the tracking libraries: resident memory of a run's process
CONTEXT = 0.6 * GIB  # CUDA context and libraries of a process; assumed
VLLM = 3.0 * GIB  # its activations, graphs and CUDA context beside weights and cache; assumed
ENGINE_LIMIT = 4 * GIB  # of a batch's keys, values and logits in this process, without a GPU
CHUNK = {False: 1 << 22, True: 1 << 26}  # elements of a buffer of logits, without and with a GPU
TILE = 128  # rows that a chunk of logits has at least, and on a GPU a multiple of which
BUFFERS = 6  # of float32 logits that PyTorch's way has alive at a time
SPARE = 0.9  # share of the free memory that `auto` fills: the allocator leaves holes
LEAST_TOKENS = 1024  # of a micro-batch where it is `auto`


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device, by what holds them.

    Attributes:
        weights: of the policy that is trained, and of those that it starts from and learns from.
        optimizer: gradients and moments, and an average of the weights.
        activations: of the largest micro-batch, its loss included.
        sampler: weights of the engine; of a vLLM server the cache too.
        batch: keys, values and logits of the sequences that are decoded in this process.
        process: everything else.
    """

    weights: float
    optimizer: float
    activations: float
    sampler: float
    batch: float
    process: float

    @property
    def total(self) -> float:
        """Everything at the fullest moment; in a process sampling and training take turns."""
        return self.stays + max(self.activations, self.batch)

    @property
    def stays(self) -> float:
        """What is there while the process samples, and while it trains."""
        return self.weights + self.optimizer + self.sampler + self.process


def sampling_devices(experiment: Experiment) -> int:
    """Return how many devices draw samples: the servers, each over its tensor-parallel share."""
    engine = experiment.engine
    if engine.kind != "vllm":
        return 1
    return max(1, len(engine.urls)) * tensor_parallel(experiment)


def tensor_parallel(experiment: Experiment) -> int:
    """Return the devices that a server splits the model over."""
    words = " ".join(experiment.engine.arguments)
    match = re.search(r"--tensor-parallel-size[= ](\d+)|(?:^| )-tp[= ](\d+)", words)
    return int(match[1] or match[2]) if match else 1


def batch_rows(experiment: Experiment, shape: Shape, lengths: Lengths, limit: float) -> int:
    """Return the sequences that are decoded together, on all servers, or here within a limit."""
    cache = shape.cache_bytes(experiment.model.dtype) * (lengths.prompt + lengths.longest)
    if experiment.engine.kind == "vllm":
        servers = max(1, len(experiment.engine.urls))
        held = int(experiment.engine.cache_gib * GIB // cache)
        return servers * max(1, min(experiment.engine.concurrency, held))
    row = shape.cache_bytes(experiment.model.dtype) * (
        lengths.prompt + experiment.sampling.max_new_tokens
    )
    row += 32 * shape.vocabulary
    return max(1, min(experiment.sampling.batch_size, int(limit // row)))


def engine_limit(machine: Machine, stays: float) -> float:
    """Return the bytes of a batch in this process: on a GPU half of what else is free."""
    return max(0.0, machine.memory - stays) / 2 if machine.gpu else ENGINE_LIMIT


def logit_bytes(
    objective: ConditionSettings | WarmupConfig, dtype: str, temperature: float, *, gpu: bool
) -> float:
    """Return the bytes per element of a chunk of logits, as counted in `training.projection`.

    A GPU's kernel reads the logits of student and teacher in float32 and writes a gradient in the
    head's type; a mixture of two teachers holds three for a moment. Without a teacher PyTorch has
    logits, log-probs and probs, and at another sampling temperature one more.
    """
    if gpu and isinstance(objective, DistillConfig) and objective.is_whole:
        third = FLOAT if objective.teacher.kind == "trust_region" else BYTES[dtype]
        return 2 * FLOAT + third
    if gpu and isinstance(objective, WarmupConfig):
        return 3 * FLOAT
    if gpu and isinstance(objective, GrpoConfig) and not objective.kl_coefficient:
        return (3 if temperature == 1.0 else 4) * FLOAT
    return BUFFERS * FLOAT


def logit_rows(vocabulary: int, *, gpu: bool) -> int:
    """Return the tokens of a chunk of logits."""
    rows = CHUNK[gpu] // vocabulary
    return max(TILE, rows - rows % TILE if gpu else rows)


def token_bytes(training: TrainingConfig, dtype: str, shape: Shape) -> float:
    """Return the bytes that a position of a micro-batch keeps for the backward pass."""
    layer = shape.activation_bytes(dtype, training.lora)
    if training.activation_checkpointing:
        kept = shape.layers * shape.width * BYTES[dtype] + layer
    else:
        kept = shape.layers * layer
    ends = 4 * FLOAT * shape.width  # hidden states that predict, of student and teacher; gradient
    return kept + ends


def chunk_bytes(shape: Shape, per_logit: float, *, gpu: bool) -> float:
    """Return the bytes of a chunk of logits, `per_logit` of each."""
    return per_logit * logit_rows(shape.vocabulary, gpu=gpu) * shape.vocabulary


def auto_tokens(
    training: TrainingConfig, dtype: str, shape: Shape, per_logit: float, free: float, *, gpu: bool
) -> int:
    """Return `tokens_per_microbatch` where it is `auto`.

    Args:
        training: its other settings.
        dtype: of the model.
        shape: of the model.
        per_logit: see `logit_bytes`.
        free: bytes that are left for the activations, the loss included.
        gpu: the device is one.

    Returns:
        The largest power of two whose positions fit, so that a little more or less free memory
        changes nothing; from `LEAST_TOKENS` to `MOST_TOKENS`.
    """
    room = SPARE * free - chunk_bytes(shape, per_logit, gpu=gpu)
    fitting = max(LEAST_TOKENS, room / token_bytes(training, dtype, shape))
    return min(MOST_TOKENS, 1 << int(log2(fitting)))


def optimizer_bytes(shape: Shape, training: TrainingConfig, ranks: int) -> float:
    """Return the bytes of gradients and moments on one of the ranks."""
    return 3 * FLOAT * trained_parameters(shape, training.lora) / (ranks if training.sharded else 1)


def memory_of(experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths) -> Memory:
    """Return the memory of the fullest device: the one with the trainer and the sampler on it."""
    gpu, training, dtype = machine.gpu, experiment.training, experiment.model.dtype
    in_process = experiment.engine.kind != "vllm"
    whole, size = shape.parameters, BYTES[dtype]
    trained = trained_parameters(shape, training.lora)
    ranks = machine.count if training.sharded else 1
    policy = whole * size + trained * FLOAT if training.lora else whole * FLOAT / ranks
    kinds = {teacher_of(condition) for condition in experiment.conditions.values()}
    copied = training.lora is None and bool(kinds - {None, "live"})
    copy = whole * (FLOAT if "ema" in kinds else size) / ranks if copied else 0.0
    average = FLOAT * trained if training.lora and "ema" in kinds else 0.0
    initial = whole * size if in_process else 0.0  # the base that all conditions start from
    if in_process:
        sampler = float(whole * size)
    elif experiment.engine.urls:
        sampler = 0.0  # a server of the user's, elsewhere
    else:
        held = whole * size + experiment.engine.cache_gib * GIB
        sampler = held / tensor_parallel(experiment) + VLLM
    memory = Memory(
        weights=policy + copy + initial,
        optimizer=optimizer_bytes(shape, training, machine.count) + average,
        activations=0.0,
        sampler=sampler,
        batch=0.0,
        process=CONTEXT if gpu else PROCESS,
    )
    if in_process:
        limit = engine_limit(machine, memory.stays)
        rows = min(batch_rows(experiment, shape, lengths, limit), most_requests(experiment))
        row = shape.cache_bytes(dtype) * (lengths.prompt + lengths.longest) + 32 * shape.vocabulary
        memory = replace(memory, batch=min(rows * row, limit))
    most = allowed_tokens(experiment, shape, machine, memory)
    tokens = microbatch_tokens(experiment, lengths, most)
    activations = tokens * token_bytes(training, dtype, shape)
    chunk = chunk_bytes(shape, most_logit_bytes(experiment, gpu=gpu), gpu=gpu)
    return replace(memory, activations=activations + chunk)


def allowed_tokens(experiment: Experiment, shape: Shape, machine: Machine, memory: Memory) -> int:
    """Return the most positions of a micro-batch: the setting, or what fits where it is `auto`."""
    training, gpu = experiment.training, machine.gpu
    if training.tokens_per_microbatch != "auto":
        return training.tokens_per_microbatch
    per_logit = most_logit_bytes(experiment, gpu=gpu)
    free = machine.memory - memory.stays
    return auto_tokens(training, experiment.model.dtype, shape, per_logit, free, gpu=gpu)


def most_logit_bytes(experiment: Experiment, *, gpu: bool) -> float:
    """Return the bytes per logit of the condition, or of the warm-up, that needs most."""
    objectives: list[ConditionSettings | WarmupConfig] = [*experiment.conditions.values()]
    objectives += [experiment.warmup] if experiment.warmup else []
    dtype, temperature = experiment.model.dtype, experiment.sampling.temperature
    return max(logit_bytes(each, dtype, temperature, gpu=gpu) for each in objectives)


def microbatch_tokens(experiment: Experiment, lengths: Lengths, most: int) -> float:
    """Return the positions of the largest micro-batch of the student, `most` of them allowed."""
    training = experiment.training
    longest = lengths.prompt + lengths.longest
    groups = [condition.group_size for condition in experiment.conditions.values()]
    step = training.questions_per_round * max(groups) / training.steps_per_round
    everything = PADDING * step * (lengths.prompt + lengths.response)
    return max(longest, min(most, everything))


def most_requests(experiment: Experiment) -> int:
    """Return the largest number of samples that are asked for at a time."""
    problems, evaluation = experiment.problems, experiment.evaluation
    groups = [condition.group_size for condition in experiment.conditions.values()]
    band = problems.band.samples * problems.train if problems.band else 0
    return max(
        problems.test * evaluation.samples,
        problems.validation * evaluation.validation_samples,
        experiment.training.questions_per_round * max(groups),
        band,
    )


def misfits(
    experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths, memory: Memory
) -> list[str]:
    """Return what does not fit, and the setting that fixes it."""
    return [
        *_too_long(experiment, shape, lengths),
        *_does_not_start(experiment, shape, machine, lengths),
        *_gives_up(experiment),
        *_too_large(experiment, shape, machine, lengths, memory),
    ]


def _too_long(experiment: Experiment, shape: Shape, lengths: Lengths) -> Iterator[str]:
    needed = max(lengths.shown + lengths.longest, _sequence(experiment, lengths))
    if needed > shape.positions:
        yield (
            f"prompt and response need about {needed:,.0f} positions, and the model has "
            f"{shape.positions:,}: lower sampling.max_new_tokens"
        )


def _does_not_start(
    experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths
) -> Iterator[str]:
    """What a vLLM server refuses that the run starts itself."""
    engine, needed = experiment.engine, _sequence(experiment, lengths)
    if engine.kind != "vllm" or engine.urls:
        return
    served = engine.context_length or shape.positions
    held = served * shape.cache_bytes(experiment.model.dtype) / GIB
    if needed > served:
        yield (
            f"engine.context_length = {served:,} is less than prompt and response, about "
            f"{needed:,.0f}: set it to {_rounded_up(needed, 1024):,}"
        )
    if held > engine.cache_gib:
        yield (
            f"vLLM does not start: engine.cache_gib = {engine.cache_gib:g}, and one sequence of "
            f"{served:,} positions needs {held:.1f} GiB: set engine.cache_gib = "
            f"{_rounded_up(held, 1):g}, or engine.context_length = {_rounded_up(needed, 1024)}"
        )
    if sampling_devices(experiment) > machine.count:
        yield (
            f"--tensor-parallel-size = {tensor_parallel(experiment)} needs as many devices, and "
            f"{machine.name} has {machine.count}: take it out of engine.arguments"
        )


def _gives_up(experiment: Experiment) -> Iterator[str]:
    """A critic whose longest answer takes longer than it is waited for."""
    for model in experiment.critic.models if experiment.critic else ():
        longest = model.max_tokens / CRITIC_RATE
        if model.base_url and longest > model.timeout:
            yield (
                f"the timeout of the critic {model.model}, {model.timeout:g} s, ends before an "
                f"answer of its max_tokens = {model.max_tokens:,} at {CRITIC_RATE:g} tokens/s: set "
                f"its critic.timeout = {_rounded_up(longest, 10)}"
            )


def _too_large(
    experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths, memory: Memory
) -> Iterator[str]:
    if memory.total > machine.memory:
        yield (
            f"memory: {memory.total / GIB:.1f} GiB on a device of {machine.memory / GIB:.0f} GiB: "
            + _remedy(experiment, shape, machine, lengths, memory)
        )
    elif experiment.training.sharded and machine.count == 1:
        yield "training.sharded needs several devices and torchrun: leave it out"


def _sequence(experiment: Experiment, lengths: Lengths) -> float:
    """Positions of the student's prompt and the longest response that is allowed."""
    return lengths.prompt + experiment.sampling.max_new_tokens


def _remedy(
    experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths, memory: Memory
) -> str:
    """The setting that makes training and sampling fit into a device."""
    gpu, training = machine.gpu, experiment.training
    if memory.batch > memory.activations:
        return "lower sampling.batch_size"
    room = machine.memory - (memory.total - memory.activations)
    longest = lengths.prompt + lengths.longest
    fixed = chunk_bytes(shape, most_logit_bytes(experiment, gpu=gpu), gpu=gpu)
    token = token_bytes(training, experiment.model.dtype, shape)
    affordable = int((room - fixed) / token) // 1024 * 1024
    if affordable >= longest:
        return f"set training.tokens_per_microbatch = {affordable}"
    if not training.activation_checkpointing:
        return "set training.activation_checkpointing = true"
    if training.lora is None:
        return "add [training.lora], or set training.sharded = true with more devices"
    return "use a smaller model, a smaller engine.cache_gib, or a device with more memory"


def _rounded_up(number: float, unit: int) -> int:
    return -int(-number // unit) * unit
