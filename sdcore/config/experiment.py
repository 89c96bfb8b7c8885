"""The experiment: one TOML file plus dotted overrides (``training.rounds=3``).

Its fingerprint is the hash of all settings that can change a result, and of the source code of
everything that it names and that is not built in. It names every row that the experiment writes.
Stored settings are complete: a default that changes later changes no stored experiment.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import ValidationInfo

from sdcore.config.additions import Additions
from sdcore.config.base import FILE_ONLY, NAMES_CODE, Name, Seed, Settings
from sdcore.config.cluster import ClusterConfig
from sdcore.config.critic import (
    CRITICS,
    CriticConfig,
    CriticSettings,
    DiagnoseConfig,
    Limits,
    exact_critic,
)
from sdcore.config.design import DesignConfig
from sdcore.config.health import HealthConfig
from sdcore.config.objectives import OBJECTIVES, Condition, ConditionSettings
from sdcore.config.problems import SOURCES, ProblemsConfig
from sdcore.config.sampling import (
    AUTO,
    ENGINES,
    EngineConfig,
    ModelConfig,
    PromptsConfig,
    SamplingConfig,
)
from sdcore.config.sweeps import SweepConfig, Trial, assigned, expanded
from sdcore.config.training import CADENCE, EvaluationConfig, TrainingConfig, WarmupConfig
from sdcore.config.weightings import WEIGHTINGS
from sdcore.contexts import CONTEXTS, Context, template_context
from sdcore.errors import ConfigError
from sdcore.grading.graders import DEFAULT_GRADER, GRADERS
from sdcore.registry import Registry, importable
from sdcore.store.schema import content_key

RESERVED = {"base", "diagnose"}
"""Condition names with a meaning in the tables: the untrained policy, and the preflight."""

_WITHOUT_EFFECT = (
    "description", "diagnose", "design", "modules", "cluster", "added", "search_of",
)  # fmt: skip
_GROWING = ("conditions", "contexts", "plugins")


class Experiment(Settings):
    """One experiment: the same solver trained under several conditions, all else equal."""

    name: Name
    description: str = ""
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="one training run per seed")
    model: ModelConfig
    problems: ProblemsConfig
    prompts: PromptsConfig = PromptsConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    warmup: WarmupConfig | None = Field(
        None, description="absent: training starts from the named model itself"
    )
    training: TrainingConfig = TrainingConfig()
    health: HealthConfig = HealthConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    critic: CriticConfig | None = Field(
        None,
        validate_default=True,
        description="absent: the exact critic of problems.source if it has one, otherwise none",
    )
    grader: str = Field(
        DEFAULT_GRADER,
        description="math: reward 1 if the answer equals the reference, else 0; or "
        "module:attribute, for rewards of your own",
        json_schema_extra=NAMES_CODE,
    )
    contexts: dict[Name, str] = Field(
        {},
        description="your own contexts by name: Jinja templates over question, solution, "
        "reference, trace, correct, critique, other_critique, sibling, other_solution and "
        "wrong_solution",
    )
    diagnose: DiagnoseConfig = DiagnoseConfig()
    design: DesignConfig = DesignConfig()
    conditions: dict[Name, Condition] = Field(min_length=1)
    sweep: SweepConfig = SweepConfig()
    cluster: ClusterConfig | None = Field(
        None, description="absent: this machine trains all of them"
    )
    trials: dict[Name, Trial] = Field(
        {},
        description="conditions that are trials, with their values; filled in by sdcore from the "
        "lists in conditions",
        json_schema_extra=FILE_ONLY,
    )
    added: Additions = Field(
        Additions(),
        description="what `sdcore run --extend` has added to the run; filled in by sdcore",
        json_schema_extra=FILE_ONLY,
    )
    search_of: Name | None = Field(
        None,
        description="the experiment whose candidates of `sdcore design` the conditions are; filled "
        "in by sdcore",
        json_schema_extra=FILE_ONLY,
    )
    modules: Path | None = Field(
        None,
        description="folder of the Python modules that the settings name as module:attribute; "
        "absent: the folder of the experiment file",
        json_schema_extra=FILE_ONLY,
    )
    plugins: dict[str, str] = Field(
        {},
        description="digests of the source code of everything named that is not built in; filled "
        "in by sdcore",
        json_schema_extra=FILE_ONLY,
    )

    @model_validator(mode="wrap")
    @classmethod
    def _expand(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Find the modules that settings name, and make trials of conditions with lists."""
        folder = data.get("modules") if isinstance(data, Mapping) else None
        with importable(folder if isinstance(folder, str | Path) else None):
            return handler(expanded(data) if isinstance(data, Mapping) else data)

    @field_validator("critic")
    @classmethod
    def _exact_critic(cls, critic: Any, info: ValidationInfo) -> Any:
        problems = info.data.get("problems")
        name = exact_critic(problems.source) if critic is None and problems is not None else None
        return critic if name is None else CRITICS[name].settings(kind=name)

    @field_validator("grader")
    @classmethod
    def _known_grader(cls, grader: str) -> str:
        return GRADERS.get(grader, where="grader").name

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds repeat: {self.seeds}")
        names = self.conditions.keys() | {trial.family for trial in self.trials.values()}
        if taken := names & RESERVED:
            raise ValueError(f"conditions: reserved names: {', '.join(sorted(taken))}")
        if taken := self.contexts.keys() & {*CONTEXTS}:
            raise ValueError(f"contexts: names of built-in contexts: {', '.join(sorted(taken))}")
        if not self.plugins:  # else they are stored ones, which cannot be imported here
            object.__setattr__(self, "plugins", self._digests())
            self._check_groups()
        if self.training.questions_per_round > self.problems.train:
            raise ValueError("training.questions_per_round exceeds problems.train")
        if self.training.sharded and self.warmup:
            raise ValueError("training.sharded: a warm-up is not sharded; leave one of them out")
        if self.engine.urls and (self.training.lora is None or self.warmup is not None):
            raise ValueError(
                "engine.urls: running servers take adapters of the named model only: "
                "set training.lora and no warmup, or let sdcore start a server"
            )
        self._check_trials()
        self._check_added()
        self._check_rollouts()
        self._check_critic()
        self._check_tokens()
        self._check_design()
        return self

    def _check_trials(self) -> None:
        if unknown := self.trials.keys() - self.conditions.keys():
            raise ValueError(f"trials: no such conditions: {', '.join(sorted(unknown))}")

    def _check_added(self) -> None:
        if not set(self.seeds[1:]) >= set(self.added.seeds):
            raise ValueError(f"added.seeds: {self.added.seeds}, of the seeds {self.seeds}")
        if not self.conditions.keys() > set(self.added.conditions):
            raise ValueError(f"added.conditions: {self.added.conditions} of {[*self.conditions]}")

    def _check_design(self) -> None:
        name = self.design.condition
        if name is None:
            return
        if name not in self.conditions or self.conditions[name].teacher_context is None:
            raise ValueError(
                f"design.condition: {name} is not a condition that shows the teacher a context"
            )

    def _check_groups(self) -> None:
        for name, condition in self.conditions.items():
            for context in self.shown_in(condition):
                if condition.group_size == 1 and "sibling" in context.needs:
                    raise ValueError(
                        f"conditions.{name}.group_size: {context.name} shows another rollout of "
                        "the same question, and there is none: set it to 2 or more"
                    )
                if self.training.questions_per_round == 1 and "other_critique" in context.needs:
                    raise ValueError(
                        f"training.questions_per_round: {context.name} of conditions.{name} shows "
                        "a critique of another question, and there is none: set it to 2 or more"
                    )

    def _check_rollouts(self) -> None:
        for name, condition in self.conditions.items():
            rollouts = self.training.questions_per_round * condition.group_size
            if self.training.steps_per_round > rollouts:
                raise ValueError(
                    f"training.steps_per_round exceeds the {rollouts} rollouts per round of "
                    f"conditions.{name}"
                )
            refused = condition.refuses_lag(self.sampling)
            if self.training.lag and refused:
                raise ValueError(
                    f"training.lag = 1 gives conditions.{name} a wrong gradient, because of "
                    f"{refused}: change one of the two"
                )
            steps = self.training.steps_per_round
            if refused := condition.refuses_rollouts(steps, self.sampling):
                raise ValueError(
                    f"conditions.{name}: {refused} gives its loss a wrong gradient: change one of "
                    "the two"
                )
            if self.sampling.temperature == 0 and condition.compares_rollouts:
                raise ValueError(
                    f"sampling.temperature = 0 makes all rollouts of a group of conditions.{name} "
                    f"equal, and {condition.objective} learns from their differences"
                )

    def _check_critic(self) -> None:
        exact_for = CRITICS[self.critic.kind].exact_for if self.critic else frozenset()
        if self.critic and exact_for and self.problems.source not in exact_for:
            raise ValueError(
                f"critic.kind: the {self.critic.kind} judges {', '.join(sorted(exact_for))} "
                "problems only"
            )
        fallback = self.critic.fallback_context if self.critic else None
        if fallback and self.known_contexts[fallback].quotes_critique:
            raise ValueError(f"critic.fallback: {fallback} needs a critique itself")
        models = self.critic.models if self.critic else ()
        priced = any(model.addresses and model.price(1, 1) for model in models)
        budgets = {
            "critic.max_budget": self.critic.limits.cost if self.critic else None,
            "design.max_cost": self.design.max_cost,
        }
        for name, most in budgets.items():
            if models and most is not None and not priced:
                raise ValueError(
                    f"{name} = {most:g} limits nothing, since no model of the critic has a price: "
                    "set price_in and price_out of one with a base_url, or max_total_tokens "
                    "instead"
                )
        if self.cluster and self.critic and self.critic.limits != Limits():
            raise ValueError(
                "cluster: critic.max_budget and critic.max_total_tokens need one process at a time "
                "to ask the critic, and the nodes ask at once; leave them or the cluster out"
            )
        if self.critic is not None:
            return
        for name, condition in self.conditions.items():
            if any(context.quotes_critique for context in self.shown_in(condition)):
                raise ValueError(f"conditions.{name} needs a critic: add a section [critic]")
        for name in self.diagnose.contexts:
            if self.known_contexts[name].quotes_critique:
                raise ValueError(
                    f"diagnose.contexts: {name} needs a critic: add a section [critic]"
                )

    def _check_tokens(self) -> None:
        for name, condition in self.conditions.items():
            entry = condition.weighting
            if "regions" in entry.needs and self.critic is None:
                raise ValueError(
                    f"conditions.{name}.tokens: {entry.name} needs a critic, which finds the first "
                    "wrong step: add a section [critic], or choose all or positions"
                )
            if entry.needs_teacher and condition.teacher_context is None:
                raise ValueError(
                    f"conditions.{name}.tokens: {entry.name} needs a teacher that is shown a "
                    f"context, which {condition.objective} does not have"
                )

    @property
    def judge(self) -> CriticSettings | None:
        """The critic in use; None where there is none."""
        return self.critic

    @property
    def has_exact_critic(self) -> bool:
        """Return whether the critic is always right on these problems."""
        return self.critic is not None and (
            self.problems.source in CRITICS[self.critic.kind].exact_for
        )

    @cached_property
    def known_contexts(self) -> Mapping[str, Context]:
        """The built-in contexts, the file's own, and those from elsewhere that it names.

        Raises:
            ConfigError: a name is unknown, or a template is malformed or names something that
                rollouts do not have.
        """
        known = {each.name: each for each in CONTEXTS.builtin}
        known |= {name: template_context(name, text) for name, text in self.contexts.items()}
        for where, name in self._named_contexts():
            if name not in known:
                known[name] = CONTEXTS.get(name, others=self.contexts, where=where)
        return known

    def shown_in(self, condition: ConditionSettings) -> tuple[Context, ...]:
        """Return what a condition shows its teacher, and what stands in for an invalid critique."""
        known, name = self.known_contexts, condition.teacher_context
        if name is None:
            return ()
        fallback = self.critic.fallback_context if self.critic else None
        if fallback is None or not known[name].quotes_critique:
            return (known[name],)
        return known[name], known[fallback]

    @property
    def distilled(self) -> tuple[str, ...]:
        """The contexts that conditions train on, each once."""
        shown = (condition.teacher_context for condition in self.conditions.values())
        return tuple(dict.fromkeys(context for context in shown if context))

    @property
    def families(self) -> dict[str, list[str]]:
        """The trials of each condition that the file has with lists, in order."""
        found: dict[str, list[str]] = {}
        for name, trial in self.trials.items():
            found.setdefault(trial.family, []).append(name)
        return found

    @property
    def later(self) -> set[str]:
        """The conditions that the run was not started with: what was added, and further trials.

        Further trials are not in the file: they follow from scores on validation.
        """
        further = {name for name, trial in self.trials.items() if trial.extension}
        return further | {*self.added.conditions}

    def with_trials(self, trials: Mapping[str, Trial]) -> Self:
        """Return the same experiment with further trials, which follow those of their family.

        Raises:
            ConfigError: a setting does not take such a value.
        """
        settings = self.model_dump()
        conditions: dict[str, Any] = {}
        for name, condition in settings["conditions"].items():
            conditions[name] = condition
            family = self.trials[name].family if name in self.trials else None
            if family and name == self.families[family][-1]:
                conditions |= {
                    new: assigned(condition, trial.values)
                    for new, trial in trials.items()
                    if trial.family == family
                }
        settings |= {"conditions": conditions, "trials": {**self.trials, **trials}}
        try:
            return type(self).model_validate(settings)
        except ValidationError as error:
            raise ConfigError(
                "a setting does not take the value of a trial",
                got=error.errors()[0]["msg"],
                where=", ".join(trials),
            ) from error

    def part_of(self, run: Self) -> Self | None:
        """Return this experiment as a run that has, or may gain, more conditions and seeds.

        Args:
            run: the settings that the run has stored.

        Returns:
            These settings with the conditions and seeds of both, the run's first. None if they lack
            some that the run was started with, or if anything else differs that can change a
            result: then it is another run.
        """
        mine, stored = self.model_dump(), run.model_dump()
        first = [seed for seed in run.seeds if seed not in run.added.seeds]
        started = {name: stored[name].keys() - set(getattr(run.added, name)) for name in _GROWING}
        started["conditions"] -= run.later  # further trials are in no file
        gone = any(names - mine[name].keys() for name, names in started.items())
        if gone or not set(first) <= set(self.seeds):
            return None
        both = {name: stored[name] | mine[name] for name in (*_GROWING, "trials")}
        further = {name for name, trial in both["trials"].items() if trial["extension"]}
        added = {name: sorted(both[name].keys() - started[name] - further) for name in _GROWING}
        seeds = tuple(dict.fromkeys((*run.seeds, *self.seeds)))
        added["seeds"] = [seed for seed in seeds if seed not in first]
        try:
            joined = type(self).model_validate(mine | both | {"seeds": seeds, "added": added})
        except ValidationError:
            return None
        kept = joined.model_dump()
        changed = any(kept[name] | stored[name] != kept[name] for name in both)
        taken = joined.families.keys() & joined.conditions.keys()
        wider = any(names != joined.families[family] for family, names in run.families.items())
        other = changed or taken or wider or joined.fingerprint != run.fingerprint
        return None if other else joined

    def sampled_by(self, kind: str) -> Self:
        """Return the same experiment with another engine, its settings kept."""
        settings = self.model_dump()
        settings["engine"]["kind"] = kind
        return type(self).model_validate(settings)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every setting that can change a result.

        Left out are the description, the preflight, the search, where servers, modules and other
        machines are, what critics cost, thresholds of health that only warn, and what the run was
        not started with: additions, and trials that follow from scores.

        Raises:
            ConfigError: the engine is not settled, and it can change a result.
        """
        if self.engine.kind == AUTO:
            raise ConfigError(
                "a run has no id before its engine is settled",
                got="engine.kind = auto",
                expected="transformers or vllm",
                where=self.name,
                fix="`sdcore run` settles it; in Python, `Experiment.sampled_by`",
            )
        left_out: dict[str, Any] = {
            "engine": set(EngineConfig.model_fields) - self.engine.effective,
            "critic": dict(CRITICS[self.critic.kind].operational) if self.critic else {},
            "training": CADENCE,
        }
        left_out |= dict.fromkeys(_WITHOUT_EFFECT, True)
        if not self.health.stop_when:
            left_out["health"] = True
        if self.trials.keys() <= self.later:
            left_out |= {"sweep": True, "trials": True}
        added = {position for position, seed in enumerate(self.seeds) if seed in self.added.seeds}
        growing = {"conditions": self.later, "trials": self.later, "seeds": added} | {
            name: set(getattr(self.added, name)) for name in ("contexts", "plugins")
        }
        left_out |= {
            name: names for name, names in growing.items() if names and name not in left_out
        }
        return content_key(self.model_dump(mode="json", exclude=left_out))

    @property
    def experiment_id(self) -> str:
        """Name and start of the fingerprint: the same file again is the same run."""
        return f"{self.name}-{self.fingerprint[:8]}"

    def require_same_plugins(self) -> None:
        """Refuse to go on with an experiment whose own code has changed.

        Raises:
            ConfigError: the source code of a plugin is not the one that the experiment has stored.
        """
        with importable(self.modules):
            now = self._digests()
        names = sorted({*now, *self.plugins})
        changed = [name for name in names if now.get(name) != self.plugins.get(name)]
        if changed:
            raise ConfigError(
                "the code of a plugin is not the one that this experiment was started with",
                got=", ".join(f"{name} {now.get(name, 'gone')[:8]}" for name in changed),
                expected=", ".join(self.plugins.get(name, "none")[:8] for name in changed),
                where=self.experiment_id,
                fix="bring the old code back, or start a new run from the experiment file",
            )

    def _digests(self) -> dict[str, str]:
        """Digests of the source code of everything named that is not built in."""
        named: list[tuple[Registry[Any], str]] = [
            *((CONTEXTS, name) for name in self.known_contexts.keys() - self.contexts.keys()),
            *((OBJECTIVES, condition.objective) for condition in self.conditions.values()),
            *((WEIGHTINGS, condition.tokens.kind) for condition in self.conditions.values()),
            *((CRITICS, critic.kind) for critic in (self.critic,) if critic),
            (SOURCES, self.problems.source),
            (ENGINES, self.engine.kind),
            (GRADERS, self.grader),
        ]
        digests = {f"{registry.kind} {name}": registry.digest(name) for registry, name in named}
        return {name: digest for name, digest in sorted(digests.items()) if digest}

    def _named_contexts(self) -> Iterator[tuple[str, str]]:
        """Each setting that names a context, and the name."""
        for name, condition in self.conditions.items():
            if condition.teacher_context:
                yield f"conditions.{name}.context", condition.teacher_context
        for name in self.diagnose.contexts:
            yield "diagnose.contexts", name
        for name in self.design.contexts:
            yield "design.contexts", name
        if self.critic and self.critic.fallback_context:
            yield "critic.fallback", self.critic.fallback_context
