"""The experiment file: typed, frozen, bounded; unknown keys are refused.

An experiment is one TOML file plus dotted overrides (``training.rounds=3``). Its fingerprint is the
hash of the fully resolved settings and names every row that the experiment writes.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sdcore.contexts import CONTEXTS, Context, template_context
from sdcore.errors import ConfigError
from sdcore.schema import content_key

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

NEEDED = {  # settings of problems, and the sources that cannot do without
    "path": ("jsonl", "csv", "parquet", "duckdb"),
    "query": ("duckdb",),
    "name": ("dataset", "reasoning_gym"),
}


RESERVED = {"base", "diagnose"}
"""What tables call the untrained policy, and the rows of the preflight."""


class Settings(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error rather than a no-op."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _unset(value: object) -> bool:
    return value is None


class ModelConfig(Settings):
    """The policy that is trained, and whose initial weights are the self-teacher."""

    name: str = Field(
        description="builtin:tiny-solver, builtin:smollm2, a hub id or a local folder"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class ArithmeticConfig(Settings):
    """How hard the problems of source = arithmetic are."""

    operands: int = Field(4, ge=3, le=4)
    smallest: int = Field(10, ge=1, description="operand")
    largest: int = Field(99, le=999, description="operand, and magnitude of any result")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.largest - self.smallest < 9:
            raise ValueError("problems.arithmetic: fewer than 10 numbers from smallest to largest")
        return self


def _later(default: Any, **about: Any) -> Any:
    """A setting that came later: unused, it is no part of the fingerprint."""
    return Field(default, exclude_if=lambda value: value == default, **about)


class ChecksConfig(Settings):
    """Which rows of a source are left out, and when there are too many of them."""

    bad_share: Share = Field(0.05, description="of rows without a usable question or answer")
    near_duplicate: float = Field(
        0.8, gt=0, description="similarity of questions with equal numbers and answer; 2 is never"
    )
    overlap: float = Field(
        0.7, gt=0, description="share of its words with a scored question, in train; 2 is never"
    )
    text_answers: bool = Field(
        False, description="answers that are no mathematics are kept, and compared as text"
    )


class BandConfig(Settings):
    """Learnable but hard: which problems are used, by what the untrained policy makes of them."""

    samples: int = Field(16, ge=1, description="a problem")
    accuracy_below: float = Field(5 / 16, gt=0, le=1, description="bound of avg@samples")
    format_rate: Share = Field(0.8, description="least share of well-formed traces")
    candidates: float = Field(
        4.0, ge=1, description="problems that are looked at, at most, for each one wanted"
    )


class ProblemsConfig(Settings):
    """Where the questions come from, and how many go into each split."""

    source: Literal["arithmetic", "jsonl", "csv", "parquet", "duckdb", "dataset", "reasoning_gym"]
    path: Path | None = Field(None, description="the file of jsonl, csv, parquet or duckdb")
    query: str | None = _later(None, description="SQL, for source = duckdb")
    name: str | None = _later(
        None, description="dataset: hub id or local folder; reasoning_gym: the generator"
    )
    subset: str | None = _later(None, description="configuration of the dataset")
    part: str = _later("train", description="the dataset's own split that is read")
    options: dict[str, Any] = _later({}, description="of the reasoning_gym generator")
    limit: Count | None = _later(None, description="rows that are read, at most")
    question: str = Field("question", description="column of the question")
    solution: str = Field("solution", description="column of the reference solution")
    answer: str = Field("answer", description="column of the final answer")
    answer_pattern: str | None = Field(
        None,
        description="regular expression whose one group is the final answer in the answer text",
    )
    arithmetic: ArithmeticConfig = _later(ArithmeticConfig())
    train: Count = 256
    validation: Count = 64
    test: Count = 200
    test_share: Share = _later(0.2, description="of a source's questions, by hash")
    validation_share: Share = _later(0.1, description="of a source's questions, by hash")
    seed: int = Field(0, description="of the generator, or of the hash that splits and orders")
    checks: ChecksConfig = _later(ChecksConfig())
    band: BandConfig | None = _later(None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for setting, sources in NEEDED.items():
            if (self.source in sources) != (getattr(self, setting) is not None):
                raise ValueError(
                    f"problems.{setting} is needed for source = {' or '.join(sources)}, "
                    "and only there"
                )
        if self.test_share + self.validation_share >= 1:
            raise ValueError("problems.test_share and validation_share leave nothing to train on")
        if self.answer_pattern is not None and re.compile(self.answer_pattern).groups != 1:
            raise ValueError(
                "problems.answer_pattern must have exactly one group, e.g. '#### (.+)$'"
            )
        return self

    @property
    def counts(self) -> dict[str, int]:
        """Problems to take into each split; more than are wanted where a band chooses among them.

        In this order, so that a larger train split moves no generated test problem.
        """
        surplus = self.band.candidates if self.band else 1.0
        wanted = {"test": self.test, "validation": self.validation, "train": self.train}
        return {split: math.ceil(surplus * count) for split, count in wanted.items()}


class PromptsConfig(Settings):
    """Jinja templates of the user messages; the model's own chat template is put around them."""

    system: str | None = Field(None, description="system message")
    teacher_system: str | None = Field(
        None,
        exclude_if=_unset,
        description="the teacher's where it is shown a context; unset: the same, empty: none",
    )
    student_thinking: bool | None = Field(
        None,
        exclude_if=_unset,
        description="`enable_thinking` of the chat template; unset leaves it to the template",
    )
    teacher_thinking: bool | None = Field(
        None, exclude_if=_unset, description="the same, where the teacher is shown a context"
    )
    student: str = Field(
        "Solve the problem step by step. Write each step as <step_1>...</step_1>, "
        "<step_2>...</step_2> and so on, then only the final answer as <answer>...</answer>.\n\n"
        "{{ question }}",
        description="sees: question",
    )
    teacher: str = Field(
        "{{ student }}\n\nHere is feedback that shows how the problem is solved correctly:\n"
        "{{ context }}\n\nNow solve the problem yourself, in your own steps.",
        description="sees: student (the rendered student message), question, context",
    )


class SamplingConfig(Settings):
    """How rollouts are sampled, in training and in evaluation alike."""

    temperature: float = Field(1.0, ge=0, le=5, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(2048, ge=1, le=131072)
    batch_size: int = Field(
        1024,
        ge=1,
        description="sequences decoded together; part of the result "
        "only through floating-point rounding",
    )


class EngineConfig(Settings):
    """What samples: this process, or vLLM servers. Only `kind` is part of an experiment's identity.

    Without `urls` a server of our own is started for the run, in vLLM's own environment.
    """

    kind: Literal["transformers", "vllm"] = "transformers"
    urls: tuple[str, ...] = Field(
        (),
        description="vLLM servers that already run, e.g. http://127.0.0.1:8000; load is spread; "
        "their key, if they have one, in $VLLM_API_KEY",
    )
    python: Path = Field(
        Path(".venv-vllm/bin/python"), description="of the environment that `make vllm` makes"
    )
    context_length: int | None = Field(
        None, ge=1, description="tokens of prompt and response; unset takes the model's own"
    )
    cache_gib: float = Field(4.0, gt=0, description="memory for keys and values, GiB")
    concurrency: int = Field(128, ge=1, description="requests in flight at one server")
    arguments: tuple[str, ...] = Field(
        (), description="further arguments of our own server, e.g. --tensor-parallel-size=4"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.urls and self.kind != "vllm":
            raise ValueError("engine.urls is for engine.kind = 'vllm'")
        return self


def _in_process(engine: EngineConfig) -> bool:
    return engine.kind == "transformers"


class LoraConfig(Settings):
    """Low-rank adapters on every linear layer (the paper: rank 64, alpha 128)."""

    rank: int = Field(64, ge=1)
    alpha: float = Field(128, gt=0)
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip


class TrainingConfig(Settings):
    """The budget that all conditions share; a round is sample, align, then optimizer steps."""

    rounds: Count = 60
    questions_per_round: int = Field(
        32, ge=1, description="each question gives group_size rollouts"
    )
    steps_per_round: int = Field(
        1, ge=1, description="optimizer steps a round; 1 is strictly on-policy"
    )
    lora: LoraConfig | None = Field(None, description="absent: all weights are trained")
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    save_every: int = Field(
        1,
        ge=1,
        description="rounds between checkpoints; a run that is killed trains those since the last "
        "again, on their stored rollouts. Scored rounds have one, and all rounds where the sampler "
        "reads its weights from disk (vLLM, sharded)",
    )
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    tokens_per_microbatch: int = Field(16384, ge=1, description="prompt + response tokens, padded")
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


CADENCE = {"save_every"}
"""Settings of the training that change no result, so that a run may go on with others."""


class WarmupConfig(Settings):
    """A short supervised stage before all conditions, for a solver that keeps no step format.

    Its traces are right ones on problems of no split that is scored. It trains what
    `training` trains, with the same schedule; it should be as short as the format allows.
    """

    traces: int = Field(64, ge=1, description="well-formed traces to learn from")
    steps: int = Field(ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="traces a step")
    learning_rate: float = Field(gt=0, le=1)

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
        4, ge=1, description="samples a problem on the validation split"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(10_000, ge=100, description="bootstrap resamples over problems")


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
    clip: Literal["none", "token", "entry"] = "none"
    clip_value: float = Field(10.0, gt=0)

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


class OracleConfig(Settings):
    """The exact critic of the arithmetic problems; it costs nothing."""

    kind: Literal["oracle"]


class LlmCriticConfig(Settings):
    """A language model as critic: behind an OpenAI-compatible endpoint, or in this process."""

    kind: Literal["llm"]
    model: str = Field(description="the endpoint's name for it; without one, as in model.name")
    base_url: str | None = Field(
        None,
        pattern=r"^https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/[^?#\s]*)?$",
        description="such as http://127.0.0.1:8000/v1; absent: the model runs in this process",
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*$",
        description="name of the environment variable that holds the key, never the key",
    )
    api_key_block: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]+$",
        description="name of the Prefect Secret block that holds the key, in place of api_key_env",
    )
    structured: bool = Field(
        True,
        description="ask the endpoint to hold the answer to the JSON schema; with a model that "
        "thinks first, its server has to split off the thinking",
    )
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy, as in the paper")
    max_tokens: int = Field(4096, ge=1, le=131072, description="an answer, thinking included")
    attempts: int = Field(3, ge=1, le=10, description="times to ask until a critique is valid")
    fallback: str | None = Field(
        None, description="context where no critique is valid; absent: the rollout is left out"
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests under way at a time")
    tries: int = Field(
        6, ge=1, le=20, description="of one request that gets no answer, backing off"
    )
    timeout: float = Field(300.0, gt=0, description="seconds for one whole answer")
    price_in: float = Field(0.0, ge=0, description="of a million tokens read")
    price_out: float = Field(0.0, ge=0, description="of a million tokens written")
    max_budget: float | None = Field(None, ge=0, description="stop before the cost exceeds it")

    @model_validator(mode="after")
    def _check(self) -> Self:
        context = CONTEXTS.get(self.fallback or "none")
        if context is None or "critique" in context.needs:
            raise ValueError(f"critic.fallback: {self.fallback!r} is no context without critiques")
        if self.api_key_env and self.api_key_block:
            raise ValueError("critic.api_key_env and critic.api_key_block: only one of them")
        return self


CriticConfig = Annotated[OracleConfig | LlmCriticConfig, Field(discriminator="kind")]
OPERATIONAL = {
    "base_url", "api_key_env", "api_key_block", "concurrency", "tries", "timeout", "price_in",
    "price_out", "max_budget",
}  # fmt: skip
"""Settings of a critic that change no result, so that a run may go on with others."""


class DiagnoseConfig(Settings):
    """The preflight `sdcore diagnose`: what contexts say of the untrained solver's rollouts."""

    contexts: tuple[str, ...] = Field(
        (),
        description="absent: reference, the quoting regimes, the control, and whatever the "
        "conditions and the section [contexts] name",
    )
    split: Literal["train", "validation"] = "train"
    problems: int = Field(32, ge=2, description="at most; the first ones of the split")
    rollouts: int = Field(2, ge=1, description="a problem; two or more tell its own variance")


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
        "solution, answer, trace, correct, critique, other_critique and sibling",
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


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply dotted ``key=value`` overrides (values are TOML).

    Raises:
        ConfigError: file missing, not TOML, or a setting that does not validate.
    """
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            "experiment file not found", got=path, mend="see deployments/experiments/"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("experiment file is not TOML", got=error, where=str(path)) from error
    for override in overrides:
        _apply(tree, override)
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, path) from error


def drift(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two trees of settings, each as `section.key was X, is Y`."""
    old, new = _flat(before), _flat(now)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, leaf = _path(key if equals else "", override)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or path needs no quotes on the command line
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(
                "override goes through a value", got=override, expected=f"{parent} to be a section"
            )
    node[leaf] = value


def _path(key: str, override: str) -> list[str]:
    """The names in a dotted key, which is TOML's: one with a dot in it stands in quotes."""
    names = list[str]()
    with suppress(tomllib.TOMLDecodeError):
        tree: Any = tomllib.loads(f"{key} = 0")
        while tree:
            ((name, tree),) = tree.items()
            names.append(name)
    if not names:
        raise ConfigError(
            "not an override",
            got=override,
            expected="section.key=value",
            mend="such as training.rounds=3; a name with a dot in quotes: conditions.'a.b'.top_k=9",
        )
    return names


def _explained(error: ValidationError, path: Path) -> ConfigError:
    lines = [
        f"{'.'.join(map(str, item['loc'])) or 'experiment'}: {item['msg']} "
        f"(got {item['input']!r:.80})"
        for item in error.errors()
    ]
    return ConfigError(
        "experiment file has settings that do not validate",
        got="; ".join(lines),
        where=str(path),
        mend="`sdcore run FILE --dry-run` prints the resolved settings of a valid file",
    )
