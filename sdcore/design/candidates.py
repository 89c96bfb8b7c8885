"""The candidates of a search: contexts × tokens × divergences, and the file's own conditions.

A context that shows a critique by a language model comes with each of the prompts in
`critic.prompts`, and with the one that the file uses.

A candidate is a condition of an experiment. It has the settings of the condition of the file that
shows the same context, such as its learning rate, or else those of the condition that the winner is
confirmed against. Only the things that are searched for differ.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import polars as pl
from pydantic import ValidationError

from sdcore.config import NAME_LENGTH, Condition, Experiment, LlmCriticConfig
from sdcore.contexts import NULL
from sdcore.errors import ConfigError
from sdcore.rollouts import lacking_sources

QUOTED = ("reference", "step_aligned", "full_quote", "omission")
"""The built-in contexts that are candidates by default; controls are not."""


@dataclass(frozen=True)
class Candidate:
    """A condition that may be the best feedback."""

    name: str
    condition: Condition
    prompt: str | None = None  # of the critic; None is sdcore's own

    @property
    def context(self) -> str:
        """The context that the teacher is shown."""
        return self.condition.teacher_context or NULL

    @property
    def divergence(self) -> str | None:
        """The divergence of the loss; None where the objective has no choice."""
        return getattr(self.condition, "divergence", None)


@dataclass(frozen=True)
class Skipped:
    """A combination that cannot be trained, and why."""

    name: str
    context: str
    tokens: str
    divergence: str | None
    reason: str


@dataclass(frozen=True)
class Field:
    """The candidates of a search; the winner is confirmed against the first one.

    Attributes:
        usual: the prompt of the critic that the file uses; None is sdcore's own.
    """

    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...]
    usual: str | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Other prompts of the critic that candidates have."""
        named = dict.fromkeys(each.prompt for each in self.candidates)
        return tuple(name for name in named if name is not None and name != self.usual)

    @property
    def baseline(self) -> Candidate:
        """The condition of the file that the winner is confirmed against."""
        return self.candidates[0]


def enumerate_field(experiment: Experiment, solutions: pl.Series) -> Field:
    """Return the candidates of an experiment in a fixed order, each once.

    The baseline comes first, then the file's other conditions with a context, then the combinations
    by context, tokens and divergence, in the order of the settings.

    Args:
        experiment: the file.
        solutions: worked ones of its training problems; some may be missing.

    Raises:
        ConfigError: no condition shows the teacher a context, or fewer than two candidates can be
            trained.
    """
    baseline = _baseline(experiment)
    own = {name: experiment.conditions[name] for name in _taught(experiment)}
    settings = {name: own[name] for name in (baseline, *own)}
    critic = experiment.critic
    llm = critic if isinstance(critic, LlmCriticConfig) else None
    usual = llm.prompt if llm else None
    named: dict[str, tuple[dict[str, Any], str | None]] = {
        name: (condition.model_dump(mode="json"), llm.asking(name).prompt if llm else None)
        for name, condition in settings.items()
    }
    for name, tree in _combinations(experiment, settings[baseline]):
        judged = llm and experiment.known_contexts[tree["context"]].quotes_critique
        for prompt in dict.fromkeys([usual, *llm.prompts]) if llm and judged else [usual]:
            if (tree, prompt) not in named.values():
                end = f"-{prompt}" if prompt != usual else ""
                named[_free(f"{name}{end}", named)] = tree, prompt
    candidates, skipped = list[Candidate](), list[Skipped]()
    for name, (tree, prompt) in named.items():
        made = _made(experiment, name, tree, solutions, prompt)
        if isinstance(made, Skipped):
            skipped.append(made)
        else:
            candidates.append(made)
    if len(candidates) < 2 or candidates[0].name != baseline:
        raise ConfigError(
            "there is nothing to choose among",
            got="; ".join(f"{each.name}: {each.reason}" for each in skipped)
            or ", ".join(each.name for each in candidates),
            expected=f"{baseline} and at least one other candidate that can be trained",
            where="design",
            fix="list other contexts or tokens in the section [design]",
        )
    return Field(tuple(candidates), tuple(skipped), usual)


def _taught(experiment: Experiment) -> list[str]:
    conditions = experiment.conditions.items()
    return [name for name, condition in conditions if condition.teacher_context]


def _baseline(experiment: Experiment) -> str:
    if experiment.design.condition is not None:
        return experiment.design.condition
    if taught := _taught(experiment):
        return taught[-1]
    raise ConfigError(
        "no condition of the file shows the teacher a context",
        got=", ".join(experiment.conditions),
        expected="one to take the settings of the candidates from, and to confirm the winner "
        "against",
        where="conditions",
        fix='add a condition with objective = "distill"',
    )


def _combinations(
    experiment: Experiment, baseline: Condition
) -> Iterator[tuple[str, dict[str, Any]]]:
    design = experiment.design
    shown = {c.teacher_context: c for c in reversed(list(experiment.conditions.values()))}
    contexts = design.contexts or dict.fromkeys(
        [*experiment.distilled, *QUOTED, *experiment.contexts]
    )
    for context, tokens in product(contexts, design.tokens):
        like = shown.get(context, baseline)
        if context == baseline.teacher_context:
            like = baseline
        tree = like.model_dump(mode="json") | {"context": context}
        tree["tokens"] = tokens.model_dump(mode="json")
        name = f"{context}-{_token_label(tree['tokens'])}"
        if "divergence" not in tree:
            yield name, tree
            continue
        for divergence in design.divergences or (tree["divergence"],):
            other = f"-{divergence}" if divergence != tree["divergence"] else ""
            yield f"{name}{other}", tree | {"divergence": divergence}


def _token_label(tokens: Mapping[str, Any]) -> str:
    """Such as `until_error`, or `regions-before0.5-at1-after0-answer0`."""
    options = (f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
               for name, value in tokens.items() if name != "kind")  # fmt: skip
    return "-".join([str(tokens["kind"]), *options])


def _free(wanted: str, taken: Mapping[str, object]) -> str:
    """A name for a condition like the one that is wanted, which no other candidate has."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", wanted).lstrip("_.-")[:NAME_LENGTH] or "candidate"
    number = 2
    while name in taken:
        end = f"-{number}"
        name, number = f"{name[: NAME_LENGTH - len(end)]}{end}", number + 1
    return name


def _made(
    experiment: Experiment,
    name: str,
    tree: dict[str, Any],
    solutions: pl.Series,
    prompt: str | None,
) -> Candidate | Skipped:
    """The candidate; or, if the experiment with it alone does not validate, the reason."""
    context, label = str(tree["context"]), _token_label(tree["tokens"])
    divergence = tree.get("divergence")
    try:
        alone = Experiment.model_validate(tree_of(experiment) | {"conditions": {name: tree}})
    except ValidationError as error:
        said = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        reason = said.removeprefix(f"conditions.{name}").lstrip(".: ")
        return Skipped(name, context, label, divergence, reason)
    lacking = lacking_sources(solutions, alone.conditions[name].group_size)
    if missing := alone.known_contexts[context].needs & lacking:
        reason = f"the problems have no {', '.join(sorted(missing))}, which {context} shows"
        return Skipped(name, context, label, divergence, reason)
    return Candidate(name, alone.conditions[name], prompt)


def tree_of(experiment: Experiment) -> dict[str, Any]:
    """The settings as a tree to be changed and validated: what follows from them is left out.

    The contexts and conditions that only the search or the preflight names are left out too, so
    that they do not fail what is validated.
    """
    tree = experiment.model_dump(mode="json", exclude={"plugins", "conditions", "trials"})
    tree["diagnose"]["contexts"] = []
    tree["design"] |= {"condition": None}
    if tree["critic"] and "prompt_of" in tree["critic"]:
        tree["critic"]["prompt_of"] = {}
    return tree
