"""The model, its prompts, and how rollouts are drawn."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from sdcore.config.base import Settings


class ModelConfig(Settings):
    """The policy that is trained, and whose initial weights are the self-teacher."""

    name: str = Field(
        description="builtin:tiny-solver, builtin:smollm2, a hub id or a local folder"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["auto", "sdpa", "eager"] = Field(
        "auto",
        description="implementation of attention in this process; auto: PyTorch's fused one "
        "(sdpa), or the architecture's own where it does not support that, as Gemma-2",
    )


class PromptsConfig(Settings):
    """Jinja templates of the user messages, which go into the model's own chat template."""

    system: str | None = Field(None, description="system message")
    teacher_system: str | None = Field(
        None,
        description="system message of a teacher that is shown a context; unset: the same as the "
        "student's, empty: none",
    )
    student_thinking: bool | None = Field(
        None,
        description="`enable_thinking` of the chat template; unset leaves it to the template",
    )
    teacher_thinking: bool | None = Field(
        None,
        description="the same for the teacher, with or without a context; unset: the student's. "
        "The prompt ends as the student's does in any case, so that both expect the same response "
        "(for a Qwen3 that does not think, with an empty thought)",
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
    """How rollouts are sampled, in training and in evaluation."""

    temperature: float = Field(1.0, ge=0, le=5, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(2048, ge=1, le=131072)
    batch_size: int = Field(
        1024,
        ge=1,
        description="sequences decoded together; changes results through floating-point rounding "
        "only",
    )


class EngineConfig(Settings):
    """The sampler: this process, or vLLM servers. Only `kind` is part of the fingerprint.

    Without `urls`, a server is started for the run, in the environment that `python` belongs to.
    """

    kind: Literal["transformers", "vllm"] = "transformers"
    urls: tuple[str, ...] = Field(
        (),
        description="vLLM servers that are running, e.g. http://127.0.0.1:8000, which share the "
        "requests; their API key, if any, is read from $VLLM_API_KEY",
    )
    python: Path = Field(
        Path(".venv-vllm/bin/python"),
        description="interpreter that `make vllm` installs",
    )
    context_length: int | None = Field(
        None, ge=1, description="tokens of prompt and response; unset: the model's own limit"
    )
    cache_gib: float = Field(4.0, gt=0, description="memory for keys and values, in GiB")
    concurrency: int = Field(128, ge=1, description="requests in flight per server")
    arguments: tuple[str, ...] = Field(
        (), description="further arguments of the server, e.g. --tensor-parallel-size=4"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.urls and self.kind != "vllm":
            raise ValueError("engine.urls is for engine.kind = 'vllm'")
        return self
