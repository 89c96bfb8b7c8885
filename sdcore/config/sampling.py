"""The model, its prompts, and how rollouts are drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sdcore.config.base import FILE_ONLY, NAMES_CODE, Address, Settings
from sdcore.registry import Entry, Registry, about


class ModelConfig(Settings):
    """The policy that is trained, and whose initial weights are the self-teacher."""

    name: str = Field(
        description="builtin:tiny-solver, builtin:smollm2, a hub id or a local folder; smoke:NAME "
        "is a tiny random model of the same architecture",
        json_schema_extra=FILE_ONLY,
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto",
        description="implementation of attention in this process; auto: PyTorch's fused one "
        "(sdpa), or the architecture's own if it does not support that, as in Gemma-2",
    )


class PromptsConfig(Settings):
    """Jinja templates of the user messages, which go into the model's own chat template."""

    system: str | None = Field(None, description="system message")
    teacher_system: str | None = Field(
        None,
        description="system message of the teacher, with or without a context; unset: the "
        "student's, empty: none",
    )
    student_thinking: bool | None = Field(
        None,
        description="`enable_thinking` of the chat template; unset leaves it to the template",
    )
    teacher_thinking: bool | None = Field(
        None,
        description="the same for the teacher, with or without a context; unset: the student's. "
        "Either way the prompt ends as the student's does, so that both expect the same response "
        "(for Qwen3 without thinking, with an empty thought)",
    )
    examples: int = Field(
        0,
        ge=0,
        le=4,
        description="worked examples before the question, as earlier turns; they show the step "
        "format to a model that was not trained on it, and are the same for every source",
    )
    student: str = Field(
        "Solve the problem step by step. Write each step as <step_1>...</step_1>, "
        "<step_2>...</step_2> and so on, then only the final answer as <answer>...</answer>.\n\n"
        "{{ question }}",
        description="template over question",
    )
    teacher: str = Field(
        "{{ student }}\n\nHere is feedback that shows how the problem is solved correctly:\n"
        "{{ context }}\n\nNow solve the problem yourself, in your own steps.",
        description="template over student (the rendered student message), question and context",
    )

    @property
    def teacher_differs(self) -> bool:
        """Return whether the teacher's prompt differs from the student's even without a context."""
        return self.own_system or self.teacher_thinking not in (None, self.student_thinking)

    @property
    def own_system(self) -> bool:
        """Return whether the teacher's system message differs from the student's, or is missing."""
        own = self.teacher_system
        return own is not None and (own or None) != (self.system or None)


class SamplingConfig(Settings):
    """Sampling of rollouts, in training and in evaluation."""

    temperature: float = Field(1.0, ge=0, le=5, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(2048, ge=1, le=131072)
    batch_size: int = Field(
        1024,
        ge=1,
        description="sequences decoded together; changes results through floating-point rounding "
        "only",
    )


AUTO = "auto"


class EngineConfig(Settings):
    """The sampler: this process, or vLLM servers.

    The fingerprint has only `kind` and `options`, and for vLLM a `context_length` that is set,
    since it decides which problems fit.

    Without `urls`, a server is started for the run, in the environment that `python` belongs to.
    """

    kind: str = Field(
        "transformers",
        description="transformers, vllm, auto (vllm if there is a GPU, the environment of `make "
        "vllm`, and model.dtype is bfloat16, else transformers; a run keeps the engine that it "
        "was started with), or module:attribute",
        json_schema_extra=NAMES_CODE,
    )
    options: dict[str, Any] = Field(
        {},
        validate_default=True,
        description="options of an engine of your own",
        json_schema_extra=FILE_ONLY,
    )
    urls: tuple[Address, ...] = Field(
        (),
        description="running vLLM servers, such as http://127.0.0.1:8000, which share the "
        "requests; their API key, if any, is read from $VLLM_API_KEY",
        json_schema_extra=FILE_ONLY,
    )
    python: Path = Field(
        Path(".venv-vllm/bin/python"),
        description="interpreter of the environment that `make vllm` creates",
        json_schema_extra=FILE_ONLY,
    )
    context_length: int | None = Field(
        None,
        ge=1,
        description="tokens of prompt and response; unset: the model's own limit, or what the "
        "cache holds",
    )
    cache_gib: float | None = Field(
        None,
        gt=0,
        description="memory for keys and values on each device, in GiB; unset: on a GPU what "
        "`concurrency` sequences need, within what the trainer leaves, and 4 without a GPU",
    )
    concurrency: int = Field(128, ge=1, description="requests in flight per server")
    arguments: tuple[str, ...] = Field(
        (),
        description="further arguments of the server, e.g. --tensor-parallel-size=4",
        json_schema_extra=FILE_ONLY,
    )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # options are a dictionary

    @property
    def effective(self) -> set[str]:
        """Names of the settings that can change a result."""
        bounded = self.kind == "vllm" and self.context_length is not None
        return {"kind", "options"} | ({"context_length"} if bounded else set())

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        return ENGINES.get(kind, where="engine.kind").name

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        settings = ENGINES[info.data["kind"]].settings if "kind" in info.data else None
        return settings.model_validate(options).model_dump() if settings else options

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.options and ENGINES[self.kind].settings is None:
            raise ValueError(f"engine.options is not for engine.kind = {self.kind!r}")
        if self.urls and self.kind != "vllm":
            raise ValueError("engine.urls is for engine.kind = 'vllm'")
        return self


@dataclass(frozen=True)
class EngineEntry(Entry):
    """A registered sampling engine.

    Attributes:
        implementation: from `EngineConfig` and `sdcore.engines.Resources` to an engine, or its
            import path.
        settings: model of `engine.options`.
    """

    implementation: Callable[..., Any] | str
    settings: type[Settings] | None = None


ENGINES = Registry(
    "engine",
    EngineEntry,
    (
        EngineEntry(
            "transformers", "sdcore.engines.transformers:open_engine",
            about="Sampling in this process, with the weights of the trainer.",
        ),
        EngineEntry(
            "vllm", "sdcore.engines.vllm:open_engine",
            about="vLLM servers: running ones, or one that is started for the run.",
        ),
        EngineEntry(
            AUTO, "sdcore.engines.choosing:unsettled",
            about="vllm where there is a GPU that it can serve the model on, else transformers.",
        ),
    ),
)  # fmt: skip
"""The engines that `engine.kind` can name."""


def engine(settings: type[Settings] | None = None) -> Callable[[type[Any]], EngineEntry]:
    """Make a class with the methods of `sdcore.engines.Engine` an engine.

    It is constructed with `EngineConfig` and `sdcore.engines.Resources`. An experiment file refers
    to it as `kind = "my_module:MyEngine"` in the section `engine`; `engine.options` are validated
    by `settings`.
    """

    def register(implementation: type[Any]) -> EngineEntry:
        name = implementation.__name__
        return EngineEntry(name, implementation, settings, about=about(implementation))

    return register
