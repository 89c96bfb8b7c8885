"""Work of the stages: passes over a model, counted from an experiment's settings."""

from dataclasses import dataclass
from math import ceil, log2

from sdcore.config import (
    MOST_TOKENS,
    ConditionSettings,
    Experiment,
    LoraConfig,
    TeacherConfig,
    TrainingConfig,
    WarmupConfig,
)
from sdcore.planning.lengths import Lengths
from sdcore.planning.shapes import Shape
from sdcore.schedule import PROBES, checkpoint_rounds

FLOAT = 4  # bytes of a trained weight, its gradient and its two moments
CRITIC_RATE = 40.0  # tokens/s of one of the critic's answers under way; assumed, for 32B weights
PADDING = 1.07  # positions per token of a micro-batch; 5 to 7 % were measured


@dataclass(frozen=True)
class Step:
    """An optimizer step's work.

    Attributes:
        flops: of all passes.
        tokens: real ones, of the student and of the teacher.
        passes: tokens times passes, where a backward pass counts twice.
        batches: micro-batches.
    """

    flops: float
    tokens: float
    passes: float
    batches: int


def trained_parameters(shape: Shape, lora: LoraConfig | None) -> int:
    """Return the parameters that the optimizer moves."""
    return shape.parameters if lora is None else shape.lora_parameters(lora)


def checkpoint_bytes(experiment: Experiment, shape: Shape, condition: ConditionSettings) -> int:
    """Return the bytes of a checkpoint: trained weights, two moments, an ema teacher.

    The paper's adapters (69.7 million parameters) have 837 MB.
    """
    averaged = teacher_of(condition) == "ema"
    return (3 + averaged) * FLOAT * trained_parameters(shape, experiment.training.lora)


def written_bytes(experiment: Experiment, shape: Shape, condition: ConditionSettings) -> float:
    """Return the bytes of all checkpoints that a condition and seed write.

    In a round whose checkpoint is not due, a sampler that reads from disk needs the weights alone.
    """
    training, scored = experiment.training, checkpoint_rounds(experiment, condition)
    from_disk = experiment.engine.kind == "vllm" or training.sharded
    every = 1 if experiment.health.stop_when else training.save_every
    whole = len({*scored, *range(every, training.rounds + 1, every)})
    bare = training.rounds - whole if from_disk else 0
    weights = FLOAT * trained_parameters(shape, training.lora)
    return whole * checkpoint_bytes(experiment, shape, condition) + bare * weights


def teacher_of(condition: ConditionSettings) -> str | None:
    """Return the kind of a condition's teacher; None if it has none."""
    teacher = getattr(condition, "teacher", None)
    return teacher.kind if isinstance(teacher, TeacherConfig) else None


def step_of(
    experiment: Experiment, shape: Shape, lengths: Lengths, condition: ConditionSettings
) -> Step:
    """Return the work of one round's optimizer steps, with the forward pass that measures drift."""
    training = experiment.training
    rollouts = training.questions_per_round * condition.group_size
    own, taught = lengths.prompt + lengths.response, lengths.shown + lengths.response
    forward = shape.forward_flops(lengths.prompt, lengths.response)
    backward = forward * (2 if training.lora is None else 1)
    recomputed = forward if training.activation_checkpointing else 0.0
    lora = 6 * shape.lora_parameters(training.lora) * own if training.lora else 0.0
    student, passes = forward + backward + recomputed + lora, 3.0 + bool(recomputed)
    teachers = {None: 0, "trust_region": 2}.get(teacher_of(condition), 1)
    teacher = teachers * shape.forward_flops(lengths.shown, lengths.response)
    if condition.weighting.needs_teacher:  # it looks at the signals before the step
        student, passes, teacher = student + forward, passes + 1, 2 * teacher
        teachers *= 2
    drift = PROBES * forward
    widest = max(own, taught if teachers else 0.0) * PADDING
    groups = ceil(rollouts * widest / most_tokens(training))
    return Step(
        PADDING * rollouts * (student + teacher) + drift,
        rollouts * (own + (taught if teachers else 0)),
        PADDING * rollouts * (passes * own + teachers * taught) + PROBES * own,
        max(groups, training.steps_per_round),
    )


def warmup_step(
    experiment: Experiment, shape: Shape, lengths: Lengths, warmup: WarmupConfig
) -> Step:
    """Return the work of one step of the warm-up: some of its traces stand after a context."""
    traces = warmup.batch_size
    prompt = (1 - warmup.hinted) * lengths.prompt + warmup.hinted * lengths.shown
    own = prompt + lengths.response
    forward = shape.forward_flops(prompt, lengths.response)
    factor = 3 if experiment.training.lora is None else 2
    tokens = traces * own
    groups = ceil(tokens * PADDING / most_tokens(experiment.training))
    return Step(PADDING * traces * factor * forward, tokens, 3 * PADDING * tokens, groups)


def most_tokens(training: TrainingConfig) -> int:
    """Return the most positions of a micro-batch, memory permitting."""
    given = training.tokens_per_microbatch
    return MOST_TOKENS if given == "auto" else given


def rollout_bytes(shape: Shape, tokens: float) -> float:
    """Return the bytes of a row of `rollouts` in the store.

    Fitted to two measurements: 244 bytes for 38 tokens of a vocabulary of 133, and 27 KB for 2,048
    of one of 152,000.
    """
    return 30 + 0.7 * (1 + log2(shape.vocabulary)) * tokens


def context_bytes(shape: Shape, tokens: float) -> float:
    """Return the bytes of a row of `contexts`, whose teacher prompt has so many tokens."""
    return 150 + 0.2 * log2(shape.vocabulary) * tokens


SIGNAL_BYTES = 40  # of a row of `token_signals`; 33 and 55 were measured
CRITIQUE_BYTES = 150  # of a row of `critiques` without the text of a language model
EMPTY_BYTES = 3e6  # of a store with little in it: blocks of 256 KB
