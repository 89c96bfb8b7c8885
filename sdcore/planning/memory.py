"""Memory of a device, and of what does not fit into it the setting that makes it fit."""

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
from sdcore.planning.serving import (
    Serving,
    fixed_bytes,
    refusals,
    sampling_devices,
    sequence,
    serving_of,
    starts_server,
    tensor_parallel,
)
from sdcore.planning.shapes import BYTES, Shape
from sdcore.planning.work import CRITIC_RATE, FLOAT, PADDING, teacher_of, trained_parameters

PROCESS = 0.9 * GIB  # Python, torch and the tracking libraries: resident memory of a run's process
CONTEXT = 0.6 * GIB  # CUDA context and libraries of a process; assumed
ENGINE_LIMIT = 4 * GIB  # of a batch's keys, values and logits in this process, without a GPU
CHUNK = {False: 1 << 22, True: 1 << 26}  # elements of a buffer of logits, without and with a GPU
HELD = 1 << 29  # elements of the gradients by the logits that a GPU holds for a trained head
TILE = 128  # rows that a chunk of logits has at least, and on a GPU a multiple of which
BUFFERS = 6  # of float32 logits that PyTorch's way has alive at a time
HOLES = 1.15  # bytes that glibc holds beside each byte of activations, at most: see the README
SPARE = {False: 1 / (1 + HOLES), True: 0.9}
"""Share of the free memory that `auto` fills, without and with a GPU: allocators leave holes."""
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
        """Return the memory held while the process samples, and while it trains."""
        return self.weights + self.optimizer + self.sampler + self.process


def batch_rows(
    experiment: Experiment,
    shape: Shape,
    lengths: Lengths,
    limit: float,
    serving: Serving | None = None,
) -> int:
    """Return the sequences that are decoded together: on all servers, or here within a limit."""
    concurrency = experiment.engine.concurrency
    if serving is not None:
        held = int(serving.held // (lengths.prompt + lengths.longest))
        return max(1, min(concurrency, held))
    if experiment.engine.kind == "vllm":  # running ones, taken to have room for all
        return len(experiment.engine.urls) * concurrency
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


def chunk_bytes(
    training: TrainingConfig, dtype: str, shape: Shape, per_logit: float, *, gpu: bool
) -> float:
    """Return the bytes of a chunk of logits, `per_logit` of each.

    Where a GPU trains the head, with those of the gradients that it holds for one product.
    """
    chunk = per_logit * logit_rows(shape.vocabulary, gpu=gpu) * shape.vocabulary
    if training.lora is not None or not gpu:
        return chunk
    return chunk + BYTES[dtype] * min(HELD, MOST_TOKENS * shape.vocabulary)


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
    room = SPARE[gpu] * free - chunk_bytes(training, dtype, shape, per_logit, gpu=gpu)
    fitting = max(LEAST_TOKENS, room / token_bytes(training, dtype, shape))
    return min(MOST_TOKENS, 1 << int(log2(fitting)))


def optimizer_bytes(shape: Shape, training: TrainingConfig, ranks: int) -> float:
    """Return the bytes of gradients and moments on one of the ranks."""
    return 3 * FLOAT * trained_parameters(shape, training.lora) / (ranks if training.sharded else 1)


def training_memory(experiment: Experiment, shape: Shape, ranks: int, *, gpu: bool) -> Memory:
    """Return what a process that trains holds, without its activations and without a sampler."""
    training, size = experiment.training, BYTES[experiment.model.dtype]
    whole, trained = shape.parameters, trained_parameters(shape, training.lora)
    optimizer = optimizer_bytes(shape, training, ranks)
    ranks = ranks if training.sharded else 1
    policy = whole * size + trained * FLOAT if training.lora else whole * FLOAT / ranks
    kinds = {teacher_of(condition) for condition in experiment.conditions.values()}
    copied = training.lora is None and bool(kinds - {None, "live"})
    copy = whole * (FLOAT if "ema" in kinds else size) / ranks if copied else 0.0
    average = FLOAT * trained if training.lora and "ema" in kinds else 0.0
    return Memory(
        weights=policy + copy,
        optimizer=optimizer + average,
        activations=0.0,
        sampler=0.0,
        batch=0.0,
        process=CONTEXT if gpu else PROCESS,
    )


def cache_room(
    experiment: Experiment, shape: Shape, lengths: Lengths, free: float, beside: Memory | None
) -> float:
    """Return the bytes of a GPU that a vLLM server may take for keys and values.

    Args:
        experiment: its settings.
        shape: of the model.
        lengths: of prompts and responses.
        free: bytes that the trainer and the server may take together.
        beside: memory of the trainer on the same GPU, without its activations; None if it is on
            another one. Where `tokens_per_microbatch` is `auto`, its activations get half of what
            is left.
    """
    left = SPARE[True] * free - fixed_bytes(experiment, shape)
    if beside is None:
        return left
    left -= beside.stays
    if experiment.training.tokens_per_microbatch == "auto":
        return left / 2
    most = experiment.training.tokens_per_microbatch
    return left - activation_bytes(experiment, shape, lengths, most, gpu=True)


def activation_bytes(
    experiment: Experiment, shape: Shape, lengths: Lengths, most: int, *, gpu: bool
) -> float:
    """Return the bytes of the largest micro-batch, of at most so many positions; its loss too."""
    tokens = microbatch_tokens(experiment, lengths, most)
    chunk = _chunk_bytes(experiment, shape, gpu=gpu)
    return tokens * token_bytes(experiment.training, experiment.model.dtype, shape) + chunk


def server_of(
    experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths
) -> Serving | None:
    """Return what the run's own vLLM server takes of the device that it shares with the trainer."""
    if not starts_server(experiment):
        return None
    beside = training_memory(experiment, shape, machine.count, gpu=machine.gpu)
    room = cache_room(experiment, shape, lengths, machine.memory, beside) if machine.gpu else None
    return serving_of(experiment, shape, lengths, room)


def memory_of(experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths) -> Memory:
    """Return the memory of the fullest device: the one with the trainer and the sampler on it."""
    gpu, dtype = machine.gpu, experiment.model.dtype
    memory = training_memory(experiment, shape, machine.count, gpu=gpu)
    serving = server_of(experiment, shape, machine, lengths)
    if serving is not None:
        memory = replace(memory, sampler=serving.total)
    if experiment.engine.kind != "vllm":
        whole = float(shape.parameters * BYTES[dtype])
        # The engine's copy, and the base that all conditions start from.
        memory = replace(memory, weights=memory.weights + whole, sampler=whole)
        limit = engine_limit(machine, memory.stays)
        rows = min(batch_rows(experiment, shape, lengths, limit), most_requests(experiment))
        row = shape.cache_bytes(dtype) * (lengths.prompt + lengths.longest) + 32 * shape.vocabulary
        memory = replace(memory, batch=min(rows * row, limit))
    most = allowed_tokens(experiment, shape, machine, memory)
    return replace(memory, activations=activation_bytes(experiment, shape, lengths, most, gpu=gpu))


def allowed_tokens(experiment: Experiment, shape: Shape, machine: Machine, memory: Memory) -> int:
    """Return the most positions of a micro-batch: the setting, or what fits where it is `auto`."""
    training, gpu = experiment.training, machine.gpu
    if training.tokens_per_microbatch != "auto":
        return training.tokens_per_microbatch
    per_logit = most_logit_bytes(experiment, gpu=gpu)
    free = machine.memory - memory.stays
    return auto_tokens(training, experiment.model.dtype, shape, per_logit, free, gpu=gpu)


def _chunk_bytes(experiment: Experiment, shape: Shape, *, gpu: bool) -> float:
    training, dtype = experiment.training, experiment.model.dtype
    return chunk_bytes(training, dtype, shape, most_logit_bytes(experiment, gpu=gpu), gpu=gpu)


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
    needed = max(lengths.shown + lengths.longest, sequence(experiment, lengths))
    if needed > shape.positions:
        yield (
            f"prompt and response need about {needed:,.0f} positions, and the model has "
            f"{shape.positions:,}: lower sampling.max_new_tokens"
        )


def _does_not_start(
    experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths
) -> Iterator[str]:
    """Return the settings that a run's own vLLM server would refuse."""
    serving = server_of(experiment, shape, machine, lengths)
    if serving is None:
        return
    yield from refusals(experiment, shape, lengths, serving)
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
    sized = machine.gpu and starts_server(experiment) and experiment.engine.cache_gib is None
    if memory.total > machine.memory and not sized:  # else the server's own line says it
        yield (
            f"memory: {memory.total / GIB:.1f} GiB on a device of {machine.memory / GIB:.0f} GiB: "
            + _remedy(experiment, shape, machine, lengths, memory)
        )
    elif experiment.training.sharded and machine.count == 1:
        yield "training.sharded needs several devices and torchrun: leave it out"


def _remedy(
    experiment: Experiment, shape: Shape, machine: Machine, lengths: Lengths, memory: Memory
) -> str:
    """The setting that makes training and sampling fit into a device."""
    gpu, training = machine.gpu, experiment.training
    if memory.batch > memory.activations:
        return "lower sampling.batch_size"
    room = machine.memory - (memory.total - memory.activations)
    longest = lengths.prompt + lengths.longest
    fixed = _chunk_bytes(experiment, shape, gpu=gpu)
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
