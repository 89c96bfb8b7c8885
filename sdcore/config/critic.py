"""The critic, which says where a rollout goes wrong, and the preflight of its feedback."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from sdcore.config.base import FILE_ONLY, NAMES_CODE, Address, Name, Settings, by_name
from sdcore.jinja_sandbox import variables
from sdcore.registry import Entry, Registry, about


class CriticSettings(Settings):
    """Settings that every critic has. The settings of a critic derive from this class.

    A critic with a setting `fallback` names the context that a rollout gets if no critique of it is
    valid; without one the rollout is left out.
    """

    kind: str

    @property
    def fallback_context(self) -> str | None:
        """Name of the context in place of an invalid critique."""
        return getattr(self, "fallback", None)


class OracleConfig(CriticSettings):
    """The exact critic of the generated problems, arithmetic and in words, at no cost."""

    kind: Literal["oracle"] = Field(json_schema_extra=NAMES_CODE)


PROMPT_FIELDS = frozenset({"mark", "question", "solution", "answer", "trace", "correct"})
"""What the template of a critic's prompt may name."""


class LlmCriticConfig(CriticSettings):
    """A language model as critic: behind an OpenAI-compatible endpoint, or in this process."""

    kind: Literal["llm"] = Field(json_schema_extra=NAMES_CODE)
    model: str = Field(
        description="the endpoint's name for it; without one, as in model.name",
        json_schema_extra=FILE_ONLY,
    )
    base_url: Address | Annotated[tuple[Address, ...], Field(min_length=1)] | None = Field(
        None,
        description="such as http://127.0.0.1:8000/v1, or a list of servers with the same model; "
        "absent: the model runs in this process",
        json_schema_extra=FILE_ONLY,
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*$",
        description="name of the environment variable that holds the key, never the key",
        json_schema_extra=FILE_ONLY,
    )
    api_key_block: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]+$",
        description="name of the Prefect Secret block that holds the key, in place of api_key_env",
        json_schema_extra=FILE_ONLY,
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
        None,
        description="context where no critique is valid; absent: the rollout is left out",
        json_schema_extra=NAMES_CODE,
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests under way at a server")
    tries: int = Field(
        6, ge=1, le=20, description="of one request that gets no answer, backing off"
    )
    timeout: float = Field(300.0, gt=0, description="seconds for one whole answer")
    prompts: dict[Name, str] = Field(
        {},
        description="prompts of your own by name: Jinja templates over mark, question, solution, "
        "answer, trace and correct; `sdcore design` tries each of them",
    )
    prompt: str | None = Field(
        None, description="name of the prompt that is used; absent: sdcore's own"
    )
    prompt_of: dict[str, str] = Field(
        {}, description="conditions that are judged with another prompt; set by `sdcore design`"
    )
    price_in: float = Field(0.0, ge=0, description="of a million tokens read")
    price_out: float = Field(0.0, ge=0, description="of a million tokens written")
    max_budget: float | None = Field(None, ge=0, description="stop before the cost exceeds it")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api_key_env and self.api_key_block:
            raise ValueError("critic.api_key_env and critic.api_key_block: only one of them")
        named = {self.prompt, *self.prompt_of.values()} - {None}
        if unknown := sorted(str(name) for name in named - self.prompts.keys()):
            raise ValueError(f"critic.prompts has no prompt named {', '.join(unknown)}")
        for name, text in self.prompts.items():
            if others := variables(text) - PROMPT_FIELDS:
                raise ValueError(
                    f"critic.prompts.{name} names {', '.join(sorted(others))}; there are "
                    f"{', '.join(sorted(PROMPT_FIELDS))}"
                )
        return self

    def asking(self, condition: str) -> Self:
        """Return the settings with the prompt that a condition is judged with."""
        return self.model_copy(update={"prompt": self.prompt_of.get(condition, self.prompt)})

    @property
    def template(self) -> str | None:
        """The prompt's template; None for sdcore's own."""
        return self.prompts[self.prompt] if self.prompt is not None else None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses of its servers; none where it runs in this process."""
        if isinstance(self.base_url, str):
            return (self.base_url,)
        return self.base_url or ()


OPERATIONAL = frozenset({
    "base_url", "api_key_env", "api_key_block", "concurrency", "tries", "timeout", "price_in",
    "price_out", "max_budget",
})  # fmt: skip
"""Settings of the language model as critic that change no result: a run may go on with others."""


@dataclass(frozen=True)
class CriticEntry(Entry):
    """A registered critic.

    Attributes:
        settings: model of the section `critic`.
        implementation: from the settings, and a function that opens a language model, to a
            `sdcore.critics.llm.Critic`; or its import path.
        exact_for: sources of problems on which it is exact and always right.
        operational: settings that change no result.
    """

    settings: type[CriticSettings]
    implementation: Callable[..., Any] | str
    exact_for: frozenset[str] = frozenset()
    operational: frozenset[str] = frozenset()


CRITICS = Registry(
    "critic",
    CriticEntry,
    (
        CriticEntry(
            "oracle", OracleConfig, "sdcore.critics.llm:OracleCritic",
            exact_for=frozenset({"arithmetic", "word_problems"}), about=about(OracleConfig),
        ),
        CriticEntry(
            "llm", LlmCriticConfig, "sdcore.critics.llm:open_llm",
            operational=OPERATIONAL, about=about(LlmCriticConfig),
        ),
    ),
)  # fmt: skip
"""The critics that `critic.kind` can name."""


def critic(settings: type[CriticSettings]) -> Callable[[type[Any]], CriticEntry]:
    """Make a subclass of `sdcore.critics.llm.Critic` a critic with these settings.

    It is constructed with the settings and a function that opens a language model. An experiment
    file refers to it as `kind = "my_module:MyCritic"` in the section `critic`.
    """

    def register(implementation: type[Any]) -> CriticEntry:
        name = implementation.__name__
        return CriticEntry(name, settings, implementation, about=about(implementation))

    return register


def exact_critic(source: str) -> str | None:
    """Return the name of the built-in critic that is exact on a source of problems."""
    return next((each.name for each in CRITICS.builtin if source in each.exact_for), None)


CriticConfig = Annotated[
    SerializeAsAny[CriticSettings],
    BeforeValidator(
        by_name(CriticSettings, "kind", lambda name: CRITICS[name].settings),
        json_schema_input_type=Annotated[
            OracleConfig | LlmCriticConfig, Field(discriminator="kind")
        ],
    ),
]


class DiagnoseConfig(Settings):
    """The preflight `sdcore diagnose`: what contexts say of the untrained solver's rollouts."""

    contexts: tuple[str, ...] = Field(
        (),
        description="absent: reference, the quoting regimes, the controls, and whatever the "
        "conditions and the section [contexts] name",
        json_schema_extra=NAMES_CODE,
    )
    split: Literal["train", "validation"] = "train"
    problems: int = Field(32, ge=2, description="at most; the first ones of the split")
    rollouts: int = Field(
        2, ge=1, description="per problem; with two or more its own variance is known"
    )
    teacher_samples: int = Field(
        4,
        ge=0,
        description="responses per problem that the model samples with each context in its prompt, "
        "and as many that continue a wrong rollout before and after its first wrong step, and that "
        "the student continues from there; 0 leaves them out",
    )
    branches: int = Field(
        0,
        ge=0,
        description="per context and wrong rollout: tokens at which the model with the context "
        "disagrees, where its preferred token is forced and the model goes on without the context; "
        "shows where that leads to right answers. 0 leaves it out",
    )
