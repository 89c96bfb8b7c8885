"""The experiment file: typed, frozen, bounded; unknown keys are refused.

An experiment is one TOML file plus dotted overrides (``training.rounds=3``). Its fingerprint is the
hash of the fully resolved settings and names every row that the experiment writes.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from pydantic import Field, model_validator

from sdcore.config.base import Name, Settings, _unset
from sdcore.config.critic import (
    OPERATIONAL,
    CriticConfig,
    DiagnoseConfig,
    LlmCriticConfig,
    OracleConfig,
)
from sdcore.config.objectives import Condition, DistillConfig, GrpoConfig
from sdcore.config.problems import ProblemsConfig
from sdcore.config.sampling import (
    EngineConfig,
    ModelConfig,
    PromptsConfig,
    SamplingConfig,
    _in_process,
)
from sdcore.config.training import CADENCE, EvaluationConfig, TrainingConfig, WarmupConfig
from sdcore.contexts import CONTEXTS, Context, template_context
from sdcore.store.schema import content_key

RESERVED = {"base", "diagnose"}
"""What tables call the untrained policy, and the rows of the preflight."""


class Experiment(Settings):
    """One experiment: the same solver trained under several conditions, all else equal."""

    name: Name
    description: str = ""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    model: ModelConfig
    problems: ProblemsConfig
    prompts: PromptsConfig = PromptsConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = Field(EngineConfig(), exclude_if=_in_process)
    warmup: WarmupConfig | None = Field(
        None, exclude_if=_unset, description="absent: the named model is the base as it is"
    )
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    critic: CriticConfig | None = Field(
        None,
        exclude_if=lambda critic: critic is None,
        description="absent: the oracle where the problems are arithmetic, else none",
    )
    diagnose: DiagnoseConfig = DiagnoseConfig()
    contexts: dict[Name, str] = Field(
        {},
        exclude_if=lambda contexts: not contexts,
        description="contexts of the user's own, by name: Jinja templates that see question, "
        "solution, reference, trace, correct, critique, other_critique and sibling",
    )
    conditions: dict[Name, Condition] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds repeat: {self.seeds}")
        if taken := self.conditions.keys() & RESERVED:
            raise ValueError(f"condition names that are taken: {', '.join(sorted(taken))}")
        if taken := self.contexts.keys() & CONTEXTS:
            raise ValueError(f"contexts: names that are taken: {', '.join(sorted(taken))}")
        for name in (*self.diagnose.contexts, *self.distilled):
            if name not in self.known_contexts:
                known = ", ".join(sorted(self.known_contexts))
                raise ValueError(f"context {name!r} is not one of {known}")
        if self.training.questions_per_round > self.problems.train:
            raise ValueError("training.questions_per_round exceeds problems.train")
        if self.training.sharded and self.warmup:
            raise ValueError("training.sharded: a warm-up is not sharded; leave one of them out")
        if self.engine.urls and (self.training.lora is None or self.warmup is not None):
            raise ValueError(
                "engine.urls: running servers take adapters of the named model only: "
                "set training.lora and no warmup, or let a server be started"
            )
        self._check_rollouts()
        self._check_critic()
        return self

    def _check_rollouts(self) -> None:
        for name, condition in self.conditions.items():
            rollouts = self.training.questions_per_round * condition.group_size
            if self.training.steps_per_round > rollouts:
                raise ValueError(
                    f"training.steps_per_round exceeds the {rollouts} rollouts of a round of "
                    f"conditions.{name}"
                )
            if self.sampling.temperature == 0 and isinstance(condition, GrpoConfig):
                raise ValueError(
                    f"sampling.temperature = 0 gives each group of conditions.{name} one and the "
                    "same rollout: GRPO learns from their differences"
                )

    def _check_critic(self) -> None:
        if isinstance(self.critic, OracleConfig) and self.problems.source != "arithmetic":
            raise ValueError("critic.kind: the oracle judges arithmetic problems only")
        for name, condition in self.conditions.items():
            context = self.known_contexts[getattr(condition, "context", "none")]
            if self.judge is None and "critique" in context.needs:
                raise ValueError(f"conditions.{name} needs a critic: add a section [critic]")
        for name in self.diagnose.contexts:
            if self.judge is None and "critique" in self.known_contexts[name].needs:
                raise ValueError(
                    f"diagnose.contexts: {name} needs a critic: add a section [critic]"
                )

    @property
    def judge(self) -> OracleConfig | LlmCriticConfig | None:
        """The critic in use; None where there is none."""
        if self.critic is None and self.problems.source == "arithmetic":
            return OracleConfig(kind="oracle")
        return self.critic

    @cached_property
    def known_contexts(self) -> Mapping[str, Context]:
        """The registered contexts and the file's own, by name.

        Raises:
            ConfigError: a template is malformed, or names something that rollouts do not have.
        """
        own = {name: template_context(name, text) for name, text in self.contexts.items()}
        return CONTEXTS | own

    @property
    def distilled(self) -> tuple[str, ...]:
        """The contexts that conditions train on, each once."""
        conditions = self.conditions.values()
        return tuple(dict.fromkeys(c.context for c in conditions if isinstance(c, DistillConfig)))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every resolved setting that can change a result.

        Left out are the description, the preflight, where servers are and what they cost.

        A setting that came later is in it only where it is used (`exclude_if`), so that runs from
        before keep their names.
        """
        where = set(EngineConfig.model_fields) - {"kind"}
        left_out: dict[str, Any] = {"engine": where, "critic": OPERATIONAL, "training": CADENCE}
        left_out |= {"description": True, "diagnose": True}
        return content_key(self.model_dump(mode="json", exclude=left_out))

    @property
    def experiment_id(self) -> str:
        """Name and start of the fingerprint: the same file again is the same run."""
        return f"{self.name}-{self.fingerprint[:8]}"
