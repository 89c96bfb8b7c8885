"""The experiments of a search: an ordinary one for its rungs, one for the confirmation, and a file.

The candidates are the conditions of one experiment, whose training is planned for the last rung. A
rung trains some of its conditions up to some of its rounds, and a later one goes on from there.
"""

from collections.abc import Sequence
from typing import Any

from sdcore.analysis.preflight import purpose_with
from sdcore.config import NAME_LENGTH, Experiment, Limits, as_toml
from sdcore.design.candidates import Candidate, Field, tree_of
from sdcore.design.schedule import halving
from sdcore.store.schema import content_key


def search_experiment(experiment: Experiment, field: Field) -> Experiment:
    """Return the experiment whose conditions are the candidates.

    Its last round is that of the last rung, and every rung ends at one of its checkpoints. Its test
    split is that of the file, and is never sampled.
    """
    design = experiment.design
    rungs = halving(2, design.eta, design.rungs, experiment.training.rounds)
    tree = tree_of(experiment) | {
        "search_of": experiment.name,
        "name": _named(experiment, "design"),
        "description": f"The candidates of `sdcore design` for {experiment.name}.",
        "conditions": {each.name: _settings(each) for each in field.candidates},
    }
    tree["training"] |= {"rounds": rungs[-1].rounds}
    tree["evaluation"] |= {"every": rungs[0].rounds}
    tree["diagnose"] |= {"contexts": list(dict.fromkeys(c.context for c in field.candidates))}
    _set_prompts(tree, field.candidates)
    if field.prompts:
        tree["critic"]["prompt_of"] |= {purpose_with(name): name for name in field.prompts}
    return Experiment.model_validate(_limited(tree, design.critic_limits))


def prompt_experiment(search: Experiment, field: Field, prompt: str) -> Experiment:
    """Return the search's experiment, whose preflight looks at the contexts of a prompt alone."""
    shown = dict.fromkeys(each.context for each in field.candidates if each.prompt == prompt)
    looked_at = search.diagnose.model_copy(update={"contexts": tuple(shown)})
    return search.model_copy(update={"diagnose": looked_at})


def confirmation_experiment(
    experiment: Experiment,
    pair: Sequence[Candidate],
    left: Limits = Limits(),  # noqa: B008
) -> Experiment:
    """Return the run that compares two candidates as the file would, with seeds of its own.

    Args:
        experiment: the file, whose test split no stage of the search has sampled.
        pair: the baseline and the winner.
        left: what the search has left for the critic.
    """
    first = max(experiment.seeds) + 1
    tree = tree_of(experiment) | {
        "name": _named(experiment, "confirm"),
        "description": f"Confirms the winner of `sdcore design` for {experiment.name}.",
        "seeds": list(range(first, first + experiment.design.confirm_seeds)),
        "conditions": {each.name: _settings(each) for each in pair},
    }
    _set_prompts(tree, pair)
    return Experiment.model_validate(_limited(tree, left))


def possible_confirmations(experiment: Experiment, field: Field) -> tuple[Experiment, ...]:
    """Return the confirmations that the search may come to, as far as they sample differently.

    That depends on how many rollouts per question the winner samples beside the baseline.
    """
    others = {c.condition.group_size: c for c in field.candidates if c != field.baseline}
    pairs = [[field.baseline, each] for each in others.values()]
    return tuple(confirmation_experiment(experiment, pair) for pair in pairs)


def winner_experiment(experiment: Experiment, pair: Sequence[Candidate], about: str) -> Experiment:
    """Return the file with the baseline and the winner as its conditions, ready to run."""
    tree = tree_of(experiment) | {
        "name": _named(experiment, "winner"),
        "description": about,
        "conditions": {each.name: _settings(each) for each in pair},
    }
    _set_prompts(tree, pair)
    return Experiment.model_validate(tree)


def as_file(experiment: Experiment) -> str:
    """Return the settings as an experiment file; what is as by default is left out."""
    tree = experiment.model_dump(
        mode="json", exclude_defaults=True, exclude={"plugins", "design", "diagnose"}
    )
    return as_toml(tree)


def design_id(experiment: Experiment) -> str:
    """Name of a search: what it is asked again under the same name has the same answer."""
    settings = experiment.design.model_dump(mode="json", exclude={"max_cost", "max_critic_tokens"})
    diagnose = experiment.diagnose.model_dump(mode="json")
    return f"{experiment.name}-{content_key(experiment.fingerprint, settings, diagnose)[:8]}"


def _set_prompts(tree: dict[str, Any], candidates: Sequence[Candidate]) -> None:
    """Say with which prompt of the critic each candidate is judged, if it has another one."""
    critic = tree["critic"]
    others = {
        each.name: each.prompt
        for each in candidates
        if each.prompt is not None and each.prompt != critic["prompt"]
    }
    if others:
        critic["prompt_of"] = others


def _settings(candidate: Candidate) -> dict[str, Any]:
    return candidate.condition.model_dump(mode="json")


def _named(experiment: Experiment, end: str) -> str:
    return f"{experiment.name[: NAME_LENGTH - len(end) - 1]}-{end}"


def _limited(tree: dict[str, Any], most: Limits) -> dict[str, Any]:
    """The settings with a critic that may take no more; the stricter of two limits holds."""
    critic = tree["critic"] or {}
    for name, limit in (("max_budget", most.cost), ("max_total_tokens", most.tokens)):
        if name in critic:
            both = [each for each in (critic[name], limit) if each is not None]
            critic[name] = min(both, default=None)
    return tree
