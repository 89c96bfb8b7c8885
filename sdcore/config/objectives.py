"""The objectives of conditions: their settings, and the registry that finds them by name.

The implementations are in `sdcore.training.objectives` and are imported when training starts, so
that reading settings loads no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from sdcore.config.base import NAMES_CODE, Settings, by_name
from sdcore.config.sampling import SamplingConfig
from sdcore.config.weightings import WEIGHTINGS, Weighting, WeightingEntry, WeightingSettings
from sdcore.errors import ConfigError
from sdcore.registry import Entry, Registry, about


class TeacherConfig(Settings):
    """The weights of the self-teacher, which scores the responses after the teacher's prompt."""

    kind: Literal["frozen", "live", "ema", "trust_region"] = Field(
        "frozen",
        description="frozen: the initial weights; live: the student's; ema: their moving average; "
        "trust_region: a mixture of the initial and the live logits",
    )
    decay: float = Field(
        0.99, ge=0, lt=1, description="for ema: average = decay * average + (1 - decay) * student"
    )
    mix: float = Field(
        0.5, gt=0, le=1, description="for trust_region: logits = (1 - mix) * initial + mix * live"
    )


class ConditionSettings(Settings):
    """Settings that every objective has. The settings of an objective derive from this class.

    An objective with a setting `context` trains against a teacher whose prompt shows that context.

    Attributes:
        compares_rollouts: the objective learns from differences within a group, so that greedy
            sampling, which makes all of them equal, is refused.
    """

    compares_rollouts: ClassVar[bool] = False

    objective: str
    learning_rate: float = Field(gt=0, le=1, description="peak learning rate of AdamW")
    group_size: int = Field(1, ge=1, description="rollouts per question")
    tokens: Weighting = Field(
        WeightingSettings(kind="all"),
        description="which tokens to learn from: all, until_error, error, regions, positions, "
        "advantages, relevance, module:attribute, or a table of weights by region",
        json_schema_extra=NAMES_CODE,
    )

    @property
    def weighting(self) -> WeightingEntry:
        """The registered weighting of the tokens."""
        return WEIGHTINGS[self.tokens.kind]

    @property
    def teacher_context(self) -> str | None:
        """Name of the context in the teacher's prompt; None if the teacher needs no prompt."""
        return getattr(self, "context", None)

    def refuses_lag(self, sampling: SamplingConfig) -> str:
        """Return why rollouts of older weights give a wrong gradient; empty if they do not."""
        return ""

    def refuses_rollouts(self, steps: int, sampling: SamplingConfig) -> str:
        """Return which setting makes the rollouts of a round give a wrong gradient; empty if none.

        Args:
            steps: per round, all on its rollouts.
            sampling: of the rollouts.
        """
        return ""

    @property
    def title(self) -> str:
        """Name of the objective in reports."""
        return self.objective

    @property
    def learns_from(self) -> str:
        """Return the reports' name of the tokens, such as `regions: after 0, answer 0`."""
        chosen = self.tokens.model_dump(exclude={"kind"})
        told = ", ".join(f"{name} {value}" for name, value in chosen.items())
        return f"{self.tokens.kind}: {told}" if told else self.tokens.kind

    @property
    def summary(self) -> str:
        """Summary of the loss for reports."""
        return OBJECTIVES[self.objective].about


class DistillConfig(ConditionSettings):
    """Distil the self-teacher, which is shown the context, into the student."""

    objective: Literal["distill"] = Field(json_schema_extra=NAMES_CODE)
    context: str = Field(
        description="a built-in context, one of the section [contexts], or module:attribute",
        json_schema_extra=NAMES_CODE,
    )
    teacher: TeacherConfig = TeacherConfig()
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "policy_gradient"] = "forward_kl"
    beta: float = Field(
        0.5, gt=0, lt=1, description="for divergence = jsd: weight of the teacher in the mixture"
    )
    support: Literal["vocabulary", "teacher", "student"] = Field(
        "vocabulary",
        description="the whole vocabulary, or the top_k tokens of one side and the rest as one "
        "bucket",
    )
    top_k: int = Field(100, ge=1, description="tokens of a teacher or student support")
    temperature: float = Field(
        1.0, gt=0, description="of student and teacher in the loss; not the sampling temperature"
    )
    clip: Literal["none", "token"] = Field(
        "none", description="token: a loss above clip_value is scaled to it, with its gradient"
    )
    clip_value: float = Field(10.0, gt=0, description="largest loss of a token, nats")

    @property
    def is_whole(self) -> bool:
        """Return whether the loss is a divergence over the whole vocabulary at temperature 1."""
        sampled = self.divergence == "policy_gradient"
        return self.support == "vocabulary" and self.temperature == 1.0 and not sampled

    @property
    def title(self) -> str:
        """Name of the objective in reports."""
        return "self-distillation"

    def refuses_lag(self, sampling: SamplingConfig) -> str:
        """The policy gradient is that of the divergence on rollouts of the same weights only."""
        return "divergence = policy_gradient" if self.divergence == "policy_gradient" else ""

    def refuses_rollouts(self, steps: int, sampling: SamplingConfig) -> str:
        """The policy gradient needs rollouts of the very distribution in the loss."""
        if self.divergence != "policy_gradient":
            return ""
        if steps > 1:
            return f"training.steps_per_round = {steps}"
        if sampling.temperature != self.temperature:
            return (
                f"sampling.temperature = {sampling.temperature:g}, which is {self.temperature:g} "
                "in it,"
            )
        if sampling.top_p < 1:
            return f"sampling.top_p = {sampling.top_p:g}, which leaves out tokens that it counts,"
        return ""

    @property
    def summary(self) -> str:
        """Summary of the loss for reports."""
        divergence = self.divergence.replace("_", " ").replace("kl", "KL")
        return f"{divergence}, {self.teacher.kind.replace('_', ' ')} teacher"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.divergence == "policy_gradient" and (
            self.clip != "none" or self.support != "vocabulary"
        ):
            raise ValueError("policy_gradient looks at the sampled token: no clip, no support")
        return self


class GrpoConfig(ConditionSettings):
    """Optimise the policy on the rewards of groups of rollouts (GRPO, arXiv 2402.03300)."""

    compares_rollouts: ClassVar[bool] = True

    objective: Literal["grpo"] = Field(json_schema_extra=NAMES_CODE)
    group_size: int = Field(8, ge=2, description="rollouts per question")
    clip_low: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped at 1 - clip_low")
    clip_high: float = Field(0.2, gt=0, description="the ratio is clipped at 1 + clip_high")
    kl_coefficient: float = Field(0.0, ge=0, description="weight of the KL to the initial policy")
    normalise: Literal["token", "sequence"] = Field(
        "token", description="average over tokens, or over sequences of their means over tokens"
    )

    def refuses_lag(self, sampling: SamplingConfig) -> str:
        """The ratio is at the sampling temperature, the sampler's log-probs are at 1."""
        temperature = sampling.temperature
        return f"sampling.temperature = {temperature:g}" if temperature != 1 else ""

    @property
    def title(self) -> str:
        """Name of the objective in reports."""
        return "GRPO"

    @property
    def summary(self) -> str:
        """Summary of the loss for reports."""
        return "clipped policy gradient on the reward"


@dataclass(frozen=True)
class ObjectiveEntry(Entry):
    """A registered objective.

    Attributes:
        settings: model of its section `conditions.<name>`.
        implementation: subclass of `sdcore.training.objectives.Objective`, or its import path.
    """

    settings: type[ConditionSettings]
    implementation: type[Any] | str


OBJECTIVES = Registry(
    "objective",
    ObjectiveEntry,
    (
        ObjectiveEntry(
            "distill",
            DistillConfig,
            "sdcore.training.objectives:Distillation",
            about=about(DistillConfig),
        ),
        ObjectiveEntry(
            "grpo", GrpoConfig, "sdcore.training.objectives:Grpo", about=about(GrpoConfig)
        ),
    ),
)
"""The objectives that conditions can name."""


def objective(settings: type[ConditionSettings]) -> Callable[[type[Any]], ObjectiveEntry]:
    """Make a subclass of `sdcore.training.objectives.Objective` an objective with these settings.

    An experiment file refers to it as `objective = "my_module:MyObjective"`.

    Raises:
        ConfigError: the settings do not derive from `ConditionSettings`.
    """
    if not (isinstance(settings, type) and issubclass(settings, ConditionSettings)):
        raise ConfigError(
            "an objective needs a settings model",
            got=settings,
            expected="@objective(MySettings), a subclass of ConditionSettings",
        )

    def register(implementation: type[Any]) -> ObjectiveEntry:
        name = implementation.__name__
        return ObjectiveEntry(name, settings, implementation, about=about(implementation))

    return register


Condition = Annotated[
    SerializeAsAny[ConditionSettings],
    BeforeValidator(
        by_name(ConditionSettings, "objective", lambda name: OBJECTIVES[name].settings),
        json_schema_input_type=Annotated[
            DistillConfig | GrpoConfig, Field(discriminator="objective")
        ],
    ),
]
