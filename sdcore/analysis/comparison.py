"""The paper's table from stored rollouts: checkpoints chosen on validation, paired differences.

All intervals are bootstraps over problems of per-problem values that are averaged over seeds first:
a problem is the unit that a new test set would redraw.
"""

from dataclasses import dataclass

import polars as pl
import polars.selectors as cs

from sdcore.analysis.metrics import METRICS, interval, per_problem
from sdcore.analysis.signal_stats import REGIONS, correct_rollouts, region_advantages
from sdcore.config import EvaluationConfig, Experiment
from sdcore.errors import DataError
from sdcore.store.database import Store

BASE = "base"
TOKEN_TOLERANCE = 1.1  # equal sampled tokens means within ten per cent of the cheapest condition's
_RUN = ("condition", "seed", "round")


@dataclass(frozen=True)
class Results:
    """The scores of an experiment and the test metrics of every scored policy per problem."""

    experiment: Experiment
    scores: pl.DataFrame
    test: pl.DataFrame


def results(store: Store, experiment_id: str) -> Results:
    """Load what the comparison looks at.

    Raises:
        DataError: the workspace has no such experiment.
    """
    rows = store.rows("experiments", experiment_id=experiment_id)
    if not len(rows):
        raise DataError("no such experiment", got=experiment_id, fix="`sdcore list` names them")
    rollouts = store.query(
        "SELECT condition, seed, round, problem_id, sample_index, answer, correct FROM rollouts "
        "WHERE experiment_id = ? AND purpose = 'test'",
        [experiment_id],
    )
    return Results(
        experiment=Experiment.model_validate_json(rows["config"][0]),
        scores=store.rows("scores", experiment_id=experiment_id),
        test=per_problem(rollouts, by=_RUN),
    )


def summary(store: Store, experiment_id: str) -> pl.DataFrame:
    """One row a condition and way of choosing its checkpoint, base first, ready to print.

    `validation` rows are chosen on validation and scored once on test; `optimistic` rows are the
    best test checkpoint for each metric by itself, as the paper reports, and biased upwards.
    """
    found = results(store, experiment_id)
    chosen = chosen_rounds(found.scores)
    rows = [_row(found, BASE, "untrained", dict.fromkeys(METRICS, _base_rounds(found)))]
    for condition in found.experiment.conditions:
        own = chosen.filter(condition=condition)
        if len(own):
            best = {metric: best_test_rounds(found.scores, condition, metric) for metric in METRICS}
            rows.append(_row(found, condition, "validation", dict.fromkeys(METRICS, own)))
            rows.append(_row(found, condition, "optimistic", best))
    return pl.DataFrame(rows)


def comparisons(store: Store, experiment_id: str) -> pl.DataFrame:
    """Rows of the `comparisons` table: every pair of conditions, and each against the base."""
    found = results(store, experiment_id)
    budgets = {
        "epochs": chosen_rounds(found.scores),
        "tokens": chosen_rounds(found.scores, token_budget(found.scores)),
    }
    names = [BASE, *found.experiment.conditions]
    rows = [
        {"experiment_id": experiment_id, "condition": names[j], "baseline": names[i]}
        | {"metric": metric, "budget": budget}
        | _difference(found, chosen, names[j], names[i], metric)
        for budget, chosen in budgets.items()
        for i in range(len(names))
        for j in range(i + 1, len(names))
        for metric in METRICS
    ]
    # A condition that had no checkpoint within the budget cannot be compared at it.
    return pl.DataFrame(rows).drop_nulls("difference")


def signal_summary(store: Store, experiment_id: str) -> pl.DataFrame:
    """What the contexts say, by condition and round: where the advantage lies (nats a token).

    Mean advantage before, at and after the first wrong step of wrong rollouts, and on correct
    rollouts the share of tokens below -0.1; each with an interval over rollouts.
    """
    signals = store.query(
        "SELECT s.condition, s.round, s.rollout_id, s.region, s.advantage, r.correct "
        "FROM token_signals s JOIN rollouts r USING (rollout_id) "
        "WHERE s.experiment_id = ? AND r.purpose = 'train' "
        "ORDER BY s.rollout_id, s.position",
        [experiment_id],
    )
    by = ["condition", "round"]
    settings = results(store, experiment_id).experiment.evaluation
    regions = region_advantages(signals, by, settings).pivot(
        "region", REGIONS, index=by, values=["mean", "low", "high"]
    )
    correct = correct_rollouts(signals, by, settings).select(
        *by, cs.starts_with("negative_share"), correct_mean="mean"
    )
    return regions.join(correct, on=by, how="full", coalesce=True).sort(by)


def chosen_rounds(scores: pl.DataFrame, max_tokens: float = float("inf")) -> pl.DataFrame:
    """The checkpoint of each condition and seed that is best on validation, the earliest if tied.

    Only checkpoints that had sampled at most `max_tokens` training tokens compete; the base is
    not a candidate. Columns: condition, seed, round.
    """
    candidates = scores.filter(
        pl.col("split") == "validation",
        pl.col("condition") != BASE,
        pl.col("sampled_tokens") <= max_tokens,
    )
    ranked = candidates.sort("avg_at_k", "round", descending=[True, False])
    return ranked.group_by("condition", "seed").first().select(_RUN).sort(_RUN)


def best_test_rounds(scores: pl.DataFrame, condition: str, metric: str) -> pl.DataFrame:
    """The round of a condition with the best mean test metric over seeds. Columns as above."""
    test = scores.filter(split="test", condition=condition)
    means = (
        test.group_by("round")
        .agg(pl.col(metric).mean())
        .sort(metric, "round", descending=[True, False])
    )
    return test.filter(round=means["round"][0]).select(_RUN).sort(_RUN)


def token_budget(scores: pl.DataFrame) -> float:
    """Training tokens that every condition may have sampled in the comparison at equal tokens."""
    trained = scores.filter(pl.col("condition") != BASE)
    finals = trained.group_by("condition").agg(pl.col("sampled_tokens").max())
    return TOKEN_TOLERANCE * min(finals["sampled_tokens"].to_list(), default=0)


def _base_rounds(found: Results) -> pl.DataFrame:
    return found.scores.filter(split="test", condition=BASE).select(_RUN)


def _values(found: Results, rounds: pl.DataFrame, metric: str) -> pl.DataFrame:
    """Per-problem values of a metric, averaged over the seeds of the chosen policies."""
    policies = found.test.join(rounds, on=_RUN)
    return (
        policies.group_by("problem_id").agg(pl.col(metric).mean().alias("value")).sort("problem_id")
    )


def _row(
    found: Results, condition: str, checkpoint: str, rounds: dict[str, pl.DataFrame]
) -> dict[str, object]:
    settings = found.experiment.evaluation
    of_avg = found.scores.filter(split="test").join(rounds["avg_at_k"], on=_RUN)
    row: dict[str, object] = {
        "condition": condition,
        "checkpoint": checkpoint,
        "seeds": len(of_avg),
        "rounds": " ".join(dict.fromkeys("/".join(map(str, rounds[m]["round"])) for m in METRICS)),
        "k": settings.samples,
        "problems": of_avg["problems"].max(),
    }
    for metric in METRICS:
        row |= _with_interval(metric, _values(found, rounds[metric], metric)["value"], settings)
    row |= _gain(found, rounds["avg_at_k"], condition)
    for column in ("mean_length", "format_rate", "sampled_tokens"):
        row[column] = of_avg[column].mean()
    return row


def _gain(found: Results, rounds: pl.DataFrame, condition: str) -> dict[str, object]:
    """Difference to the base in avg@k, with its interval; empty for the base itself."""
    if condition == BASE:
        return dict.fromkeys(("gain", "gain_low", "gain_high"))
    difference = _paired(found, rounds, _base_rounds(found), "avg_at_k")
    return _with_interval("gain", difference, found.experiment.evaluation)


def _difference(
    found: Results, chosen: pl.DataFrame, condition: str, baseline: str, metric: str
) -> dict[str, object]:
    settings = found.experiment.evaluation
    rounds = [
        _base_rounds(found) if name == BASE else chosen.filter(condition=name)
        for name in (condition, baseline)
    ]
    values = _with_interval("x", _paired(found, rounds[0], rounds[1], metric), settings)
    return {"difference": values["x"], "low": values["x_low"], "high": values["x_high"]}


def _paired(found: Results, one: pl.DataFrame, other: pl.DataFrame, metric: str) -> pl.Series:
    """Per-problem differences: both policies answered the same problems."""
    pairs = _values(found, one, metric).join(_values(found, other, metric), on="problem_id")
    return pairs["value"] - pairs["value_right"]


def _with_interval(name: str, values_P: pl.Series, settings: EvaluationConfig) -> dict[str, object]:
    low, high = interval(values_P.to_numpy(), settings.confidence, settings.resamples)
    return {name: values_P.mean(), f"{name}_low": low, f"{name}_high": high}
