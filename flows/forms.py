"""The flows as the Prefect UI starts them: their parameters are the fields of a form.

Heavy libraries are imported when a flow runs, so that serving the deployments stays light.
The flows name no runs: the name that a person gives a run in the form stays. What names programs,
servers, code, weights or variables is not in the forms, and the API cannot set it either.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from prefect import flow
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_serializer
from pydantic.fields import FieldInfo

from flows.settling import settled
from sdcore import config
from sdcore.config.base import FILE_ONLY
from sdcore.errors import ConfigError

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_SWITCHES = {"as in the file": None, "yes": True, "no": False}
# A choice rather than a check box: Prefect's classic form sends an untouched check box as "no".
Switch = Annotated[Literal["as in the file", "yes", "no"], AfterValidator(_SWITCHES.get)]


class Changed(BaseModel):
    """Settings of a run that differ from its file; an empty field is as in the file."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_serializer
    def filled(self) -> dict[str, Any]:
        """Return the fields that were filled in, in the order of the form."""
        names = (name for name in type(self).model_fields if name in self.model_fields_set)
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def overrides(self) -> list[str]:
        """Return the fields that were filled in as dotted ``key=value`` settings."""
        return list(_dotted(self.model_dump(mode="json")))


def _left_open() -> None:
    """Default of a field that the form shows empty: not part of the schema, never validated."""


def _section(title: str, settings: type[BaseModel], *left_out: str) -> type[Changed]:
    """A section of the experiment with every setting left open, under a readable title."""
    fields = {name: field for name, field in _opened(settings).items() if name not in left_out}
    return create_model(title, __base__=Changed, __doc__=settings.__doc__, **fields)


def _opened(settings: type[BaseModel]) -> dict[str, Any]:
    """Every setting but those that only an experiment file may set."""
    fields = settings.model_fields.items()
    return {name: _open(name, field) for name, field in fields if not _is_file_only(field)}


def _is_file_only(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.items() >= FILE_ONLY.items()


def _open(name: str, field: FieldInfo) -> Any:
    """A setting left open: its type and bounds, without None, for which a form has no value."""
    kind: Any = _without_none(field.annotation)
    about = [field.description] if field.description else []
    if _is_section(kind):
        kind = _section(_title(name), kind)
    if kind is bool:
        kind = Switch
    for bound in field.metadata:
        kind = Annotated[kind, bound]
        about += [
            f"{word} {getattr(bound, sign):g}"
            for sign, word in _BOUNDS.items()
            if hasattr(bound, sign)
        ]
    described = Field(
        default_factory=_left_open, title=_title(name), description="; ".join(about) or None
    )
    return kind, described


def _without_none(kind: Any) -> Any:
    """A type without None; of a number or a word, such as `auto`, the number."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    kinds = [option for option in get_args(kind) if option is not type(None)]
    plain = [option for option in kinds if get_origin(option) is not Literal] or kinds
    return plain[0] if len(plain) == 1 else kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _shown(kind: Any, description: str) -> Any:
    """A field that belongs to no section, shown empty."""
    return kind, Field(default_factory=_left_open, description=description)


def _condition() -> type[Changed]:
    """A condition of either objective: a list in the form cannot offer a choice of two sections."""
    distill, grpo = _opened(config.DistillConfig), _opened(config.GrpoConfig)
    objective = _shown(Literal["distill", "grpo"], "how a new condition is trained")
    tokens = _shown(str, "which tokens to learn from, such as all, until_error or positions")
    about = "a condition of the file, or a new one"
    name = {"name": (config.Name, Field(title="Name", description=about))}
    return create_model(
        "Condition",
        __base__=Changed,
        **name | grpo | distill | {"objective": objective, "tokens": tokens},
    )


def _design() -> type[Changed]:
    """The search; its tokens are names: a list in the form cannot offer a choice of sections."""
    tokens = _shown(list[str], "which tokens to learn from, such as all, until_error or positions")
    fields = _opened(config.DesignConfig) | {"tokens": tokens}
    return create_model("Design", __base__=Changed, __doc__=config.DesignConfig.__doc__, **fields)


class _Changes(Changed):
    """The parts of the form that differ from the file: a list of conditions, one kind of critic."""

    def overrides(self) -> list[str]:
        tree = self.model_dump(mode="json")
        changed = tree.pop("conditions", [])
        tree["conditions"] = {condition.pop("name"): condition for condition in changed}
        if len(tree["conditions"]) < len(changed):
            raise ConfigError(
                "a condition is listed twice",
                got=len(changed),
                expected=f"each condition once: {', '.join(tree['conditions'])}",
                where="conditions",
                fix="put all changes of a condition into one item of the list",
            )
        return list(_dotted(tree))


Changes = create_model(
    "Changes",
    __base__=_Changes,
    __doc__=Changed.__doc__,
    seeds=_shown(list[int], "every condition is trained once per seed"),
    conditions=_shown(list[_condition()], "only conditions that differ from the file or are new"),  # type: ignore[misc]
    **{
        name: _open(name, field)
        for name, field in config.Experiment.model_fields.items()
        if _is_section(_without_none(field.annotation))
        and not _is_file_only(field)
        and name != "design"
    },
    design=_shown(_design(), "the search for the best feedback"),
    critic=_shown(
        _section("Critic", config.LlmCriticConfig, "kind"),
        "the file's language model as critic",
    ),
    contexts=_shown(dict[config.Name, str], "further contexts: Jinja templates by name, as JSON"),
)
_NOTHING = Changes()


@flow
def compare_contexts(
    experiment: str,
    changes: Changes = _NOTHING,
    overrides: list[str] = [],  # noqa: B006
    workers: Annotated[int, Field(ge=1)] = 1,
    extend: bool = False,
) -> str:
    """Train the solver under every condition and seed of an experiment and compare the results.

    Args:
        experiment: a shipped experiment such as quickstart, or the path of an experiment file
        changes: settings of this run that differ from the file
        overrides: any other setting as section.key=value, such as conditions.grpo.group_size=4
        workers: processes that train conditions and seeds side by side; GPUs are shared out
        extend: add new conditions and seeds to the experiment's run instead of starting another
    """
    from flows.compare_contexts import compare_contexts as run

    settings = _load(experiment, [*changes.overrides(), *overrides], extend=extend)
    return run.fn(settings, _workspace(), workers).experiment_id


@flow
def diagnose(
    experiment: str,
    changes: Changes = _NOTHING,
    overrides: list[str] = [],  # noqa: B006
) -> dict[str, str]:
    """Measure before any training what the teacher can do, and whether it objects to the errors.

    Args:
        experiment: a shipped experiment such as quickstart, or the path of an experiment file
        changes: settings of this run that differ from the file, such as diagnose, problems
        overrides: any other setting as section.key=value, such as critic.attempts=2
    """
    from flows.diagnose import diagnose as run

    settings = _load(experiment, [*changes.overrides(), *overrides])
    diagnosis = run.fn(settings, _workspace())
    return {verdict.context: verdict.word for verdict in diagnosis.verdicts}


@flow
def predict(
    experiment: str,
    changes: Changes = _NOTHING,
    overrides: list[str] = [],  # noqa: B006
) -> list[dict[str, Any]]:
    """Compare the preflight's measures with the gains of a finished run: did it predict them?

    Args:
        experiment: a shipped experiment such as predict, or the path of an experiment file
        changes: settings of the finished run that differ from the file
        overrides: its other settings as section.key=value, such as training.rounds=3
    """
    from flows.predict import predict as run
    from sdcore.reports.prediction import as_dict

    found = run.fn(_load(experiment, [*changes.overrides(), *overrides]), _workspace())
    correlations: list[dict[str, Any]] = as_dict(found)["correlations"]
    return correlations


@flow
def design(
    experiment: str,
    changes: Changes = _NOTHING,
    overrides: list[str] = [],  # noqa: B006
) -> dict[str, str | None]:
    """Find the feedback that trains the model best: preflight, short runs, confirmation.

    Args:
        experiment: a shipped experiment such as quickstart, or the path of an experiment file
        changes: settings of this run that differ from the file, such as design, diagnose
        overrides: any other setting as section.key=value, such as design.max_tokens=20000000
    """
    from flows.design import design as run

    outcome = run.fn(_load(experiment, [*changes.overrides(), *overrides]), _workspace())
    return {"winner": outcome.winner, "decision": outcome.word, "why": outcome.reason}


@flow
def critic_eval(
    experiment: str,
    solutions: Annotated[int, Field(ge=2)] = 200,
    processbench: Path | None = None,
    overrides: list[str] = [],  # noqa: B006
) -> dict[str, Any]:
    """Measure a critic on solutions whose first wrong step is known.

    Args:
        experiment: a shipped experiment such as gsm8k-critic, or the path of an experiment file
        solutions: largest number of solutions to judge
        processbench: a file of judged solutions; without one, solutions are made from the problems
        overrides: other settings as section.key=value, such as critic.attempts=2
    """
    from flows.critic_eval import critic_eval as run

    settings = _load(experiment, overrides)
    return run.fn(settings, _workspace(), solutions, processbench)


@flow
def build_tiny_solver(folder: Path) -> dict[str, float]:
    """Pre-train builtin:tiny-solver from scratch.

    Args:
        folder: folder for the model, below the workspace
    """
    from flows.build_tiny_solver import build_tiny_solver as run

    target = Path(os.path.normpath(_workspace() / folder))
    if _workspace() not in target.parents:
        raise ConfigError(
            "a form writes into the workspace only",
            got=folder,
            expected=f"a folder below {_workspace()}",
            where="folder",
            fix=f"`sdcore build-tiny-solver {folder}` writes anywhere",
        )
    return run.fn(target)


def _load(experiment: str, overrides: list[str], *, extend: bool = False) -> config.Experiment:
    """The settings of a run; what names programs, servers or keys comes from the file alone."""
    settings = config.load_experiment(experiment, overrides, trusted=False)
    return settled(settings, _workspace(), extend=extend)


def _workspace() -> Path:
    return Path(os.environ.get("SDCORE_WORKSPACE", "runs")).resolve()


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The leaves as settings in TOML, which reads JSON's strings, numbers and lists."""
    for name, value in tree.items():
        key = prefix + (name if name.replace("-", "_").isidentifier() else _json(name))
        if isinstance(value, dict):
            yield from _dotted(value, f"{key}.")
        else:
            yield f"{key}={_json(value)}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # TOML has no pairs of surrogates
