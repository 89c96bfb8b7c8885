"""The flows as the Prefect UI starts them: their parameters are the form that a person fills in.

Everything heavy is imported when a flow runs, so that serving the deployments stays light.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field, create_model, model_serializer
from pydantic.fields import FieldInfo

from sdcore import config
from sdcore.errors import ConfigError

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Changed(BaseModel):
    """What a run has otherwise than its file; what stays empty is as in the file."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_serializer
    def filled(self) -> dict[str, Any]:
        """The fields that were filled in; the empty ones have no value."""
        filled = (name for name in type(self).model_fields if name in self.model_fields_set)
        return {name: getattr(self, name) for name in filled}

    def overrides(self) -> list[str]:
        """What was filled in, as dotted ``key=value`` settings."""
        return list(_dotted(self.model_dump(mode="json")))


def _left_open() -> None:
    """Default of a field that the form shows empty: not part of the schema, never validated."""


def _section(title: str, settings: type[BaseModel], *left_out: str) -> type[Changed]:
    """A section of the experiment with all settings left open, under a readable title."""
    fields = {name: each for name, each in _opened(settings).items() if name not in left_out}
    return create_model(title, __base__=Changed, __doc__=settings.__doc__, **fields)


def _opened(settings: type[BaseModel]) -> dict[str, Any]:
    return {name: _open(name, field) for name, field in settings.model_fields.items()}


def _open(name: str, field: FieldInfo) -> Any:
    """A setting left open: its type without None, which an empty field cannot mean, and bounds."""
    kind: Any = _without_none(field.annotation)
    about = [field.description] if field.description else []
    if _is_section(kind):
        kind = _section(_title(name), kind)
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
    kinds = [each for each in get_args(kind) if each is not type(None)]
    return kinds[0] if type(None) in get_args(kind) and len(kinds) == 1 else kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _shown(kind: Any, description: str) -> Any:
    """A field that is no setting of one section: its type, shown empty."""
    return kind, Field(default_factory=_left_open, description=description)


def _condition() -> type[Changed]:
    """A condition of either objective: the form cannot offer one of two sections in a list."""
    distill, grpo = _opened(config.DistillConfig), _opened(config.GrpoConfig)
    objective = _shown(Literal["distill", "grpo"], "what a new condition is trained by")
    about = "of a condition in the file, or of a new one"
    name = {"name": (config.Name, Field(title="Name", description=about))}
    return create_model(
        "Condition", __base__=Changed, **name | grpo | distill | {"objective": objective}
    )


class _Changes(Changed):
    """Where the form is not built like the file: a list of conditions, one kind of critic."""

    def overrides(self) -> list[str]:
        tree = self.model_dump(mode="json")
        changed = tree.pop("conditions", [])
        tree["conditions"] = {each.pop("name"): each for each in changed}
        if len(tree["conditions"]) < len(changed):
            raise ConfigError(
                "a condition is listed twice",
                got=len(changed),
                expected=f"each once: {', '.join(tree['conditions'])}",
                where="conditions",
                fix="put what differs into one item of the list",
            )
        if tree.get("critic"):
            tree["critic"]["kind"] = "llm"
        return list(_dotted(tree))


Changes = create_model(
    "Changes",
    __base__=_Changes,
    __doc__=Changed.__doc__,
    seeds=_shown(list[int], "every condition is trained once a seed"),
    conditions=_shown(list[_condition()], "only those that differ, or come new"),  # type: ignore[misc]
    **{
        name: _open(name, field)
        for name, field in config.Experiment.model_fields.items()
        if _is_section(_without_none(field.annotation))
    },
    critic=_shown(_section("Critic", config.LlmCriticConfig, "kind"), "a language model"),
    contexts=_shown(dict[config.Name, str], "more contexts: Jinja templates by name, as JSON"),
)
_NOTHING = Changes()


def _named_for(purpose: str = "") -> Callable[[], str]:
    """Names a run after the file of its experiment, as the flows name theirs after its name."""
    return lambda: Path(flow_run.parameters["experiment"]).stem + purpose


@flow(flow_run_name=_named_for())
def compare_contexts(
    experiment: Path,
    changes: Changes = _NOTHING,
    overrides: list[str] = [],  # noqa: B006
) -> str:
    """Train the solver under every condition and seed of an experiment and compare the results.

    Args:
        experiment: the experiment file, such as deployments/experiments/quickstart.toml
        changes: settings of this run that differ from the file
        overrides: any other setting as section.key=value, such as conditions.grpo.group_size=4
    """
    from flows.compare_contexts import compare_contexts as run

    settings = config.load_experiment(experiment, [*changes.overrides(), *overrides])
    return run.fn(settings, _workspace()).experiment_id


@flow(flow_run_name=_named_for("/diagnose"))
def diagnose(
    experiment: Path,
    changes: Changes = _NOTHING,
    overrides: list[str] = [],  # noqa: B006
) -> dict[str, str]:
    """Before any training: does a context give this model a signal that points at its errors?

    Args:
        experiment: the experiment file, such as deployments/experiments/quickstart.toml
        changes: settings of this run that differ from the file, such as diagnose, problems
        overrides: any other setting as section.key=value, such as critic.model=my-critic
    """
    from flows.diagnose import diagnose as run

    settings = config.load_experiment(experiment, [*changes.overrides(), *overrides])
    return {each.context: each.word for each in run.fn(settings, _workspace()).verdicts}


@flow(flow_run_name=_named_for("/critic"))
def critic_eval(
    experiment: Path,
    solutions: Annotated[int, Field(ge=2)] = 200,
    processbench: Path | None = None,
    overrides: list[str] = [],  # noqa: B006
) -> dict[str, Any]:
    """Measure a critic on solutions whose first wrong step is known.

    Args:
        experiment: TOML file with the critic and the problems
        solutions: at most so many are judged
        processbench: a file of judged solutions; without one, wrong ones are made from the problems
        overrides: other settings as section.key=value, such as critic.model=my-critic
    """
    from flows.critic_eval import critic_eval as run

    settings = config.load_experiment(experiment, overrides)
    return run.fn(settings, _workspace(), solutions, processbench)


@flow(flow_run_name="build tiny-solver in {folder}")
def build_tiny_solver(folder: Path) -> dict[str, float]:
    """Pre-train builtin:tiny-solver from scratch.

    Args:
        folder: where the model is written; a relative one is below the workspace
    """
    from flows.build_tiny_solver import build_tiny_solver as run

    return run.fn(_workspace() / folder)


def _workspace() -> Path:
    return Path(os.environ.get("SDCORE_WORKSPACE", "runs")).absolute()


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The leaves as settings in TOML, of which JSON's strings, numbers and lists are a part."""
    for name, value in tree.items():
        key = prefix + (name if name.replace("-", "_").isidentifier() else _json(name))
        if isinstance(value, dict):
            yield from _dotted(value, f"{key}.")
        else:
            yield f"{key}={_json(value)}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # TOML has no pairs of surrogates
