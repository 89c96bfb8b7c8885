"""The budget that all conditions share, the warm-up, and evaluation."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sdcore.config.base import Count, Settings


class LoraConfig(Settings):
    """Low-rank adapters on every linear layer (the paper: rank 64, alpha 128)."""

    rank: int = Field(64, ge=1)
    alpha: float = Field(128, gt=0)
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip


class TrainingConfig(Settings):
    """The budget that all conditions share; a round is sample, align, then optimizer steps."""

    rounds: Count = Field(60, le=100_000)
    questions_per_round: int = Field(
        32, ge=1, description="each question gives group_size rollouts"
    )
    steps_per_round: int = Field(
        1, ge=1, description="optimizer steps per round; 1 is strictly on-policy"
    )
    lag: Literal[0, 1] = Field(
        0,
        description="rounds by which the weights that sample are behind those that are trained; 1: "
        "the next round is sampled and criticised before this round's update, and at the same time "
        "as it if the engine is a server",
    )
    lora: LoraConfig | None = Field(None, description="absent: all weights are trained")
    warmup_steps: int = Field(
        0,
        ge=0,
        description="optimizer steps in which the learning rate rises to its peak; all of them "
        "where a run, or its section warmup, has no more",
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    save_every: int = Field(
        1,
        ge=1,
        description="rounds between checkpoints; a killed run retrains the rounds since the last "
        "one, on their stored rollouts. Scored rounds always have one. If the sampler reads from "
        "disk (vLLM, sharded), the other rounds write the weights without the moments",
    )
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_first_token_kl: float = Field(
        2.0,
        gt=0,
        description="nats; the first step is refused if the mean KL of the first response token is "
        "above this and above ten times the median of the later tokens: the teacher then expects a "
        "response that begins differently",
    )
    tokens_per_microbatch: Count | Literal["auto"] = Field(
        16384,
        description="prompt + response tokens, padding included; auto: the largest power of two "
        "up to 16384 that fits into the device's free memory when a condition starts. Changes "
        "results through floating-point rounding only",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute each layer in the backward pass: less memory, a third slower"
    )
    sharded: bool = Field(
        False, description="split weights and optimizer over the torchrun processes (FSDP2)"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sharded and self.lora:
            raise ValueError("training.sharded is for full fine-tuning: leave out training.lora")
        return self


MOST_TOKENS = 16384
"""Most tokens of a micro-batch where it is `auto`: more of them make no step faster."""

CADENCE = {"save_every"}
"""Settings of the training that change no result, so that a run may go on with others."""


class WarmupConfig(Settings):
    """A short supervised stage before all conditions, for a model that lacks the step format.

    It trains on correct traces, never on problems that are scored, the same weights as `training`
    with the same schedule. It should be no longer than learning the format takes.
    """

    traces: int = Field(64, ge=1, description="well-formed traces to learn from")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="traces per step")
    learning_rate: float = Field(gt=0, le=1)
    hinted: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the traces that follow a context (the correct trace, or the "
        "reference solution), so that the model learns to use one. In half of them one result is "
        "wrong and the error is carried on; the wrong result itself is not in the loss",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size > self.traces:
            raise ValueError("warmup.batch_size exceeds warmup.traces")
        return self


class EvaluationConfig(Settings):
    """Scores of a policy; the checkpoint is chosen on validation and reported on test."""

    every: int = Field(20, ge=1, description="rounds between checkpoints that are scored")
    samples: int = Field(12, ge=1, description="n of avg@n, maj@n, pass@n on the test split")
    validation_samples: int = Field(
        4, ge=1, description="samples per problem on the validation split"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(10_000, ge=100, description="bootstrap resamples over problems")
