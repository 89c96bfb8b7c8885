"""The one rule by which trials of a sweep are chosen, and their grids extended: on validation only.

The score of a trial is the mean over seeds of avg@k on validation at each seed's best checkpoint,
the earliest if tied, which is the checkpoint that would be compared. The best score wins; if tied,
the smaller values, setting by setting, and where values are no numbers the one that stands first in
its list. A trial with such a checkpoint under fewer seeds than another does not win.

While the winner has the smallest or the largest of several numbers, its grid is extended beyond
that edge by the factor of the two outermost values, on all values of its other settings, up to
`sweep.max_trials`. All of this follows from stored scores alone, so that a resumed run repeats it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import cast

import polars as pl
from pydantic import JsonValue

from sdcore.config import Experiment, Trial
from sdcore.config.sweeps import is_scale, next_value, trial_name
from sdcore.errors import ConfigError
from sdcore.store.schema import TABLES

TIED = 12  # decimals to which scores are equal: a mean depends on the order of its terms


@dataclass(frozen=True)
class Outcome:
    """The result of one trial.

    Attributes:
        name: of its condition.
        trial: its family and values.
        seeds: under which it has a checkpoint that may be chosen.
        score: avg@k on validation, mean over these seeds; None where there are none.
        sampled_tokens: training tokens until its last scored checkpoint, mean over these seeds.
    """

    name: str
    trial: Trial
    seeds: int
    score: float | None
    sampled_tokens: float | None


@dataclass(frozen=True)
class Edge:
    """A winner's value that is the outermost of its grid, and why it is not extended there."""

    setting: str
    value: float
    up: bool
    reason: str = ""

    def __str__(self) -> str:
        end = "largest" if self.up else "smallest"
        return f"{self.setting} = {self.value:g} is the {end} value tried; {self.reason}"


@dataclass(frozen=True)
class Search:
    """The trials of one condition of the file.

    Attributes:
        family: name of that condition.
        outcomes: of its trials, in order.
        winner: the trial that represents the condition; None if no trial was trained.
        edges: of the winner, where its grid is not extended.
        further: trials that extend the grid, which have not run yet.
    """

    family: str
    outcomes: tuple[Outcome, ...]
    winner: Outcome | None
    edges: tuple[Edge, ...] = ()
    further: Mapping[str, Trial] | None = None


def searches(experiment: Experiment, scores: pl.DataFrame) -> list[Search]:
    """Return what the scores say of each condition with lists.

    Args:
        experiment: with all trials that have run.
        scores: rows of `scores` of checkpoints that may be chosen.
    """
    found = _outcomes(experiment, scores)
    return [
        _search(experiment, family, tuple(found[name] for name in names))
        for family, names in experiment.families.items()
    ]


def best(outcomes: tuple[Outcome, ...]) -> Outcome | None:
    """Return the outcome that wins by the rule of this module."""
    scored = [each for each in outcomes if each.score is not None]
    return min(scored, key=lambda each: _rank(each, outcomes), default=None)


def table(experiment: Experiment, searches: list[Search]) -> pl.DataFrame:
    """Return the rows of the table `trials`."""
    rows: list[dict[str, object]] = [
        {
            "experiment_id": experiment.experiment_id,
            "condition": search.family,
            "trial": each.name,
            "setting_values": json.dumps(each.trial.values),
            "extension": each.trial.extension,
            "seeds": each.seeds,
            "validation": each.score,
            "sampled_tokens": each.sampled_tokens,
            "chosen": each is search.winner,
            "why": _why(each, search),
            "edge": _edge(search) if each is search.winner else None,
        }
        for search in searches
        for each in search.outcomes
    ]
    return TABLES["trials"].frame(rows)


def losers(trials: pl.DataFrame) -> set[str]:
    """Return the trials that stand for no condition, since another of their family does."""
    decided = trials.filter(pl.col("chosen").any().over("condition"))
    return set(decided.filter(~pl.col("chosen"))["trial"])


def warnings(experiment: Experiment, trials: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield winners at an edge and unequal budgets of the search, each with its condition.

    Args:
        experiment: with all trials that have run.
        trials: its rows of the table `trials`; none before the first choice.
    """
    if not len(trials):
        return
    for row in trials.filter(pl.col("edge").is_not_null()).iter_rows(named=True):
        yield row["condition"], f"the chosen trial, {row['trial']}, is at an edge: {row['edge']}"
    families = experiment.families
    counts = {name: 1 for name in experiment.conditions if name not in experiment.trials}
    counts |= {family: len(names) for family, names in families.items()}
    most = max(counts, key=lambda name: counts[name])
    for name, count in counts.items():
        if count < counts[most]:
            yield (
                name,
                (
                    f"{count} {'trial' if count == 1 else 'trials'}, {most} has {counts[most]}: an "
                    "unequal search budget"
                ),
            )
    for family, names in families.items():
        sizes = sorted({experiment.conditions[name].group_size for name in names})
        if len(sizes) > 1:
            yield (
                family,
                (
                    f"its trials sample {', '.join(map(str, sizes))} rollouts per question: equal "
                    "rounds, not equal sampled tokens"
                ),
            )


def _outcomes(experiment: Experiment, scores: pl.DataFrame) -> dict[str, Outcome]:
    validation = scores.filter(split="validation")
    of_seeds = validation.group_by("condition", "seed").agg(
        pl.col("avg_at_k").max(), pl.col("sampled_tokens").max()
    )
    found: dict[str, Outcome] = {}
    for name, trial in experiment.trials.items():
        rows = of_seeds.filter(condition=name).sort("seed")
        score, tokens = (
            cast("float | None", rows[column].mean()) for column in ("avg_at_k", "sampled_tokens")
        )
        found[name] = Outcome(name, trial, len(rows), score, tokens)
    return found


def _search(experiment: Experiment, family: str, outcomes: tuple[Outcome, ...]) -> Search:
    winner, edges = best(outcomes), list[Edge]()
    for setting, value, up in _edges(winner, outcomes) if winner else ():
        further = _further(family, outcomes, setting, up=up)
        reason = _obstacle(experiment, outcomes, further)
        if not reason:
            return Search(family, outcomes, winner, further=further)
        edges.append(Edge(setting, value, up, reason))
    return Search(family, outcomes, winner, tuple(edges))


def _edges(winner: Outcome, outcomes: tuple[Outcome, ...]) -> Iterator[tuple[str, float, bool]]:
    """Each setting of which the winner has the outermost of several numbers."""
    for setting in winner.trial.values:
        values = _tried(setting, outcomes)
        if is_scale(values) and len(values) > 1:
            value = cast(float, winner.trial.values[setting])
            if value in (numbers := cast("list[float]", values)) and value == max(numbers):
                yield setting, value, True
            elif value == min(numbers):
                yield setting, value, False


def _further(
    family: str, outcomes: tuple[Outcome, ...], setting: str, *, up: bool
) -> dict[str, Trial]:
    """Trials with the next value of a setting, on all values of the others; none without one."""
    tried = {name: _tried(name, outcomes) for name in outcomes[0].trial.values}
    value = next_value(cast("list[float]", tried[setting]), up=up)
    if value is None:
        return {}
    count = 1 + max(each.trial.extension for each in outcomes)
    grid = product(*(tried | {setting: [value]}).values())
    made = [dict(zip(tried, values, strict=True)) for values in grid]
    return {
        trial_name(family, values): Trial(family=family, values=values, extension=count)
        for values in made
    }


def _obstacle(
    experiment: Experiment, outcomes: tuple[Outcome, ...], further: Mapping[str, Trial]
) -> str:
    """Why a grid is not extended by these trials; empty where it is."""
    if not further:
        return "no value follows by its factor"
    if len(outcomes) + len(further) > experiment.sweep.max_trials:
        return f"sweep.max_trials = {experiment.sweep.max_trials} allows no further one"
    try:
        experiment.with_trials(further)
    except ConfigError as error:
        return f"the next one is not allowed ({error.got})"
    return ""


def _rank(outcome: Outcome, outcomes: tuple[Outcome, ...]) -> tuple[float, ...]:
    """Key of the order in which trials win; less is better."""
    assert outcome.score is not None
    places = (
        cast(float, value) if is_scale(tried) else tried.index(value)
        for setting, value in outcome.trial.values.items()
        for tried in (_tried(setting, outcomes),)
    )
    return (-outcome.seeds, -round(outcome.score, TIED), *places)


def _tried(setting: str, outcomes: tuple[Outcome, ...]) -> list[JsonValue]:
    """The distinct values of a setting, in the order of the trials."""
    values: list[JsonValue] = []
    for each in outcomes:
        if (value := each.trial.values[setting]) not in values:
            values.append(value)
    return values


def _why(outcome: Outcome, search: Search) -> str:
    winner = search.winner
    if outcome.score is None or winner is None or winner.score is None:
        return "no checkpoint to choose: trained nothing, or was stopped before a good one"
    if outcome is winner:
        parts = ["best on validation" if len(search.outcomes) > 1 else "the only trial"]
        tied = [each.name for each in search.outcomes if each is not winner and _ties(each, winner)]
        if tied:
            parts.append(f"tied with {', '.join(tied)}: the smaller value, or the first, wins")
        if edge := _edge(search):
            parts.append(f"at an edge: {edge}")
        return "; ".join(parts)
    if outcome.seeds < winner.seeds:
        return f"a checkpoint to choose under {outcome.seeds} of {winner.seeds} seeds"
    if _ties(outcome, winner):
        return f"tied with {winner.name}, which has the smaller value or stands first"
    behind = 100 * (winner.score - outcome.score)
    return f"{behind:.1f} points behind {winner.name} on validation"


def _ties(one: Outcome, other: Outcome) -> bool:
    if one.score is None or other.score is None or one.seeds != other.seeds:
        return False
    return round(one.score, TIED) == round(other.score, TIED)


def _edge(search: Search) -> str | None:
    return "; ".join(map(str, search.edges)) or None
