"""The critic, which says where a rollout goes wrong, and the preflight of its feedback."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from sdcore.config.base import FILE_ONLY, NAMES_CODE, Address, Count, Name, Settings, by_name
from sdcore.jinja_sandbox import variables
from sdcore.registry import Entry, Registry, about


@dataclass(frozen=True)
class Limits:
    """The most that may be spent on a critic; None is no limit.

    Attributes:
        cost: in the currency of the critic's prices.
        tokens: that it reads and writes.
    """

    cost: float | None = None
    tokens: int | None = None


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

    @property
    def limits(self) -> Limits:
        """Return the budget that its settings `max_budget` and `max_total_tokens` allow."""
        return Limits(getattr(self, "max_budget", None), getattr(self, "max_total_tokens", None))

    @property
    def models(self) -> "tuple[LlmCriticConfig, ...]":
        """The language models that it asks, in the order in which it asks them."""
        return ()

    @property
    def streams(self) -> bool:
        """Return whether it judges rollouts while others are sampled: all its models have servers.

        Under a limit one process at a time asks it. It would hold the others up while it samples.
        """
        on_servers = [bool(model.addresses) for model in self.models]
        return any(on_servers) and all(on_servers) and self.limits == Limits()

    def asking(self, condition: str) -> Self:
        """Return the settings with the prompts that a condition is judged with."""
        return self


class OracleConfig(CriticSettings):
    """The exact critic of the generated problems, arithmetic and in words, at no cost."""

    kind: Literal["oracle"] = Field(json_schema_extra=NAMES_CODE)


PROMPT_FIELDS = frozenset({"mark", "question", "solution", "answer", "trace", "correct"})
"""Variables of a critic's prompt template."""

MILLION = 1_000_000


class AskedSettings(CriticSettings):
    """Settings of every critic that asks language models."""

    fallback: str | None = Field(
        None,
        description="context where no critique is valid; absent: the rollout is left out",
        json_schema_extra=NAMES_CODE,
    )
    max_budget: float | None = Field(None, ge=0, description="stop before the cost exceeds it")
    max_total_tokens: Count | None = Field(
        None, description="stop before the tokens that it reads and writes exceed it"
    )


class LlmCriticConfig(AskedSettings):
    """A language model as critic: behind an OpenAI-compatible endpoint, or in this process."""

    kind: Literal["llm"] = Field(json_schema_extra=NAMES_CODE)
    model: str = Field(
        description="the endpoint's name for the model; without an endpoint, as in model.name",
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
        description="ask the endpoint to enforce the JSON schema of the answer; the server of a "
        "model that thinks first has to split off the thinking",
    )
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy, as in the paper")
    max_tokens: int = Field(
        4096, ge=1, le=131072, description="tokens of an answer, thinking included"
    )
    attempts: int = Field(
        3, ge=1, le=10, description="times to ask until a critique is valid, at most"
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests in flight per server")
    tries: int = Field(
        6, ge=1, le=20, description="tries of a request that gets no answer, with growing waits"
    )
    timeout: float = Field(300.0, gt=0, description="seconds for one whole answer")
    prompts: dict[Name, str] = Field(
        {},
        description="your own prompts by name: Jinja templates over mark, question, solution, "
        "answer, trace and correct; `sdcore design` tries each of them",
    )
    prompt: str | None = Field(
        None, description="name of the prompt that is used; absent: sdcore's own"
    )
    prompt_of: dict[str, str] = Field(
        {}, description="conditions that are judged with another prompt; set by `sdcore design`"
    )
    price_in: float = Field(0.0, ge=0, description="price per million tokens read")
    price_out: float = Field(0.0, ge=0, description="price per million tokens written")

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

    @property
    def models(self) -> "tuple[LlmCriticConfig, ...]":
        """The model itself."""
        return (self,)

    def asking(self, condition: str) -> Self:
        """Return the settings with the prompt that a condition is judged with."""
        return self.model_copy(update={"prompt": self.prompt_of.get(condition, self.prompt)})

    @property
    def under_way(self) -> int:
        """Requests under way at all of its servers together."""
        return self.concurrency * max(1, len(self.addresses))

    def price(self, tokens_in: float, tokens_out: float) -> float:
        """Return the price of tokens that are read and written."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / MILLION

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


class CascadeConfig(AskedSettings):
    """Two language models: a small one judges each trace, a large one where validation refuses.

    Budget and fallback apply to both together.
    """

    kind: Literal["cascade"] = Field(json_schema_extra=NAMES_CODE)
    small: LlmCriticConfig = Field(description="asked about each trace")
    large: LlmCriticConfig = Field(
        description="asked if the small one's critique is not valid; tries the problems of a band"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in AskedSettings.model_fields.keys() - CriticSettings.model_fields.keys():
            for part, settings in (("small", self.small), ("large", self.large)):
                if getattr(settings, name) is not None:
                    raise ValueError(f"critic.{part}.{name}: of both together; set critic.{name}")
        return self

    @property
    def models(self) -> tuple[LlmCriticConfig, ...]:
        """The small one, then the large one."""
        return self.small, self.large

    def asking(self, condition: str) -> Self:
        """Return the settings with the prompts that a condition is judged with."""
        parts = {"small": self.small.asking(condition), "large": self.large.asking(condition)}
        return self.model_copy(update=parts)


LIMITS = {"max_budget": True, "max_total_tokens": True}
OPERATIONAL = dict.fromkeys(
    (
        "base_url", "api_key_env", "api_key_block", "concurrency", "tries", "timeout", "price_in",
        "price_out",
    ),
    True,
) | LIMITS  # fmt: skip
"""Settings of the language model as critic that change no result: a run may go on with others."""


@dataclass(frozen=True)
class CriticEntry(Entry):
    """A registered critic.

    Attributes:
        settings: model of the section `critic`.
        implementation: from the settings, and a function that opens a language model, to a
            `sdcore.critics.llm.Critic`; or its import path.
        exact_for: sources of problems on which it is exact and always right.
        operational: settings that change no result, as `model_dump` excludes them: true, or those
            of a section.
    """

    settings: type[CriticSettings]
    implementation: Callable[..., Any] | str
    exact_for: frozenset[str] = frozenset()
    operational: Mapping[str, Any] = field(default_factory=dict)


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
        CriticEntry(
            "cascade", CascadeConfig, "sdcore.critics.cascade:open_cascade",
            operational=LIMITS | {"small": OPERATIONAL, "large": OPERATIONAL},
            about=about(CascadeConfig),
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
            OracleConfig | LlmCriticConfig | CascadeConfig, Field(discriminator="kind")
        ],
    ),
]


class DiagnoseConfig(Settings):
    """The preflight `sdcore diagnose`: the signal of contexts on the untrained model's rollouts."""

    contexts: tuple[str, ...] = Field(
        (),
        description="absent: reference, the quoting regimes, the controls, and whatever the "
        "conditions and the section [contexts] name",
        json_schema_extra=NAMES_CODE,
    )
    split: Literal["train", "validation"] = "train"
    problems: int = Field(32, ge=2, description="number of problems, the first ones of the split")
    rollouts: int = Field(
        2, ge=1, description="per problem; the variance within a problem needs two or more"
    )
    teacher_samples: int = Field(
        4,
        ge=0,
        description="responses per problem that the model samples with each context in its prompt, "
        "and as many continuations of a wrong rollout from before and from after its first wrong "
        "step, which the student then completes; 0: none",
    )
    branches: int = Field(
        0,
        ge=0,
        description="per context and wrong rollout: tokens with which the teacher disagrees, "
        "where its preferred token is forced and the student continues, to see whether the answer "
        "becomes right; 0: none",
    )
