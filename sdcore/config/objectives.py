"""What a condition is trained by."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sdcore.config.base import Settings


class TeacherConfig(Settings):
    """Which weights score the context-conditioned prompt."""

    kind: Literal["frozen", "live", "ema", "trust_region"] = "frozen"
    decay: float = Field(
        0.99, ge=0, lt=1, description="of the EMA: teacher = decay teacher + (1 - decay) student"
    )
    mix: float = Field(
        0.5, gt=0, le=1, description="trust region: logits = (1 - mix) initial + mix live"
    )


class DistillConfig(Settings):
    """Self-distillation of the context-conditioned teacher into the student."""

    objective: Literal["distill"]
    context: str = Field(description="a registered context, or one of the file's own")
    learning_rate: float = Field(gt=0, le=1)
    group_size: int = Field(1, ge=1, description="rollouts a question")
    teacher: TeacherConfig = TeacherConfig()
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "policy_gradient"] = "forward_kl"
    beta: float = Field(0.5, gt=0, lt=1, description="of the generalised Jensen-Shannon divergence")
    support: Literal["vocabulary", "teacher", "student"] = Field(
        "vocabulary", description="whole vocabulary, or one side's top_k tokens and a tail bucket"
    )
    top_k: int = Field(100, ge=1, description="tokens of a teacher or student support")
    temperature: float = Field(
        1.0, gt=0, description="of both softmaxes; not the sampling temperature"
    )
    clip: Literal["none", "token"] = Field(
        "none", description="token: the loss and the gradient of a token are scaled to clip_value"
    )
    clip_value: float = Field(10.0, gt=0, description="largest loss of a token, nats")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.divergence == "policy_gradient" and (
            self.clip != "none" or self.support != "vocabulary"
        ):
            raise ValueError("policy_gradient looks at the sampled token: no clip, no support")
        return self


class GrpoConfig(Settings):
    """Group-relative policy optimisation on the binary reward (arXiv 2402.03300)."""

    objective: Literal["grpo"]
    learning_rate: float = Field(gt=0, le=1)
    group_size: int = Field(8, ge=2)
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    kl_coefficient: float = Field(0.0, ge=0, description="weight of the KL to the initial policy")
    normalise: Literal["token", "sequence"] = Field(
        "token", description="average over tokens or sequences"
    )


Condition = Annotated[DistillConfig | GrpoConfig, Field(discriminator="objective")]
