"""Localisation of a context's signal: token advantages against the first wrong step.

All functions take token rows, the table `token_signals` with `problem_id` and `correct` of the
rollout beside it: columns `by`, rollout_id, problem_id, correct, region, advantage. `by` are the
columns that name a group, such as condition and round. The tokens of a rollout depend on each
other, and so do the rollouts of a problem: intervals are percentile bootstraps over problems, NaN
where a group has a single one.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from sdcore.analysis.intervals import Array, bootstrap
from sdcore.config import EvaluationConfig
from sdcore.store.sql_views import OBJECTION

REGIONS = ("before", "at", "after")

_CLUSTER = "problem_id"


def region_advantages(
    signals: pl.DataFrame, by: Sequence[str], settings: EvaluationConfig
) -> pl.DataFrame:
    """Mean advantage before, at and after the first wrong step, on wrong rollouts that have one.

    Columns: `by`, region, mean, low, high (nats per token), tokens, rollouts.
    """
    values = ("mean", "low", "high")
    rows = []
    for group, tokens in _groups(with_error(signals), by):
        for region, part in _groups(tokens, ["region"]):
            mean = _means(part, [pl.col("advantage")], settings)[0]
            rows.append(group | region | dict(zip(values, mean)) | _counts(part))
    return _frame(rows, signals, [*by, "region"], values)


def correct_rollouts(
    signals: pl.DataFrame, by: Sequence[str], settings: EvaluationConfig
) -> pl.DataFrame:
    """Mean advantage and share of objections where nothing is wrong: on correct rollouts.

    Right answers with a wrong step in the trace are left out: objecting there is correct.

    Columns: `by`, mean, low, high (advantage, nats per token), negative_share, negative_share_low,
    negative_share_high (of tokens below OBJECTION: the diffusion), tokens, rollouts.
    """
    share = ("negative_share", "negative_share_low", "negative_share_high")
    values, rows, advantage = ("mean", "low", "high", *share), [], pl.col("advantage")
    for group, tokens in _groups(flawless(signals), by):
        means = _means(tokens, [advantage, advantage < OBJECTION], settings)
        rows.append(group | dict(zip(values, means.flat)) | _counts(tokens))
    return _frame(rows, signals, by, values)


def error_auc(signals: pl.DataFrame, by: Sequence[str], settings: EvaluationConfig) -> pl.DataFrame:
    """Area under the ROC curve of a low advantage as a sign of the first wrong step.

    The chance that, in wrong rollouts, a token of that step has a lower advantage than a token of
    another step, over all pairs of such tokens in the group; ties count half, 0.5 is no signal.

    Columns: `by`, auc, low, high, tokens, rollouts; no row for a group without other steps.
    """
    at, low = pl.col("region") == "at", -pl.col("advantage")
    return auc_of(with_error(signals), by, settings, at, low).rename({"value": "auc"})


def auc_of(
    tokens: pl.DataFrame,
    by: Sequence[str],
    settings: EvaluationConfig,
    positive: pl.Expr,
    score: pl.Expr,
) -> pl.DataFrame:
    """Area under the ROC curve of any score as a sign of positive tokens, over pairs in a group.

    Columns: `by`, value, low, high, tokens, rollouts; no row for a group of one kind only.
    """
    region = pl.when(positive).then(pl.lit("at")).otherwise(pl.lit("before"))
    marked = tokens.with_columns(region=region, advantage=-score)  # a low advantage is the sign
    values, rows = ("value", "low", "high"), []
    for group, part in _groups(marked, by):
        if part["region"].n_unique() == 2:
            rows.append(group | dict(zip(values, _interval(*_area(part), settings)[0])))
            rows[-1] |= _counts(part)
    return _frame(rows, tokens, by, values)


def token_means(
    signals: pl.DataFrame,
    by: Sequence[str],
    settings: EvaluationConfig,
    of: Mapping[str, pl.Expr],
) -> pl.DataFrame:
    """Means over tokens of any expressions, in long form.

    Columns: `by`, measure (the expression's name), value, low, high, tokens, rollouts.
    """
    values, rows = ("value", "low", "high"), []
    for group, tokens in _groups(signals, by):
        found = _means(tokens, list(of.values()), settings)
        rows += [
            group | {"measure": name} | dict(zip(values, mean)) | _counts(tokens)
            for name, mean in zip(of, found, strict=True)
        ]
    keyed = signals.with_columns(measure=pl.lit(""))
    return _frame(rows, keyed, [*by, "measure"], values)


def auc_difference(one: pl.DataFrame, other: pl.DataFrame, settings: EvaluationConfig) -> Array:
    """`error_auc` of one minus that of the other on the same rollouts: value, low, high.

    Both sides are resampled together, which is what makes the difference a paired one.
    """
    (area, clusters), (other_area, _) = (
        _area(with_error(side).sort(_CLUSTER)) for side in (one, other)
    )
    found = _interval(lambda n_RN: area(n_RN) - other_area(n_RN), clusters, settings)
    return np.asarray(found[0])


def flawless(signals: pl.DataFrame) -> pl.DataFrame:
    """Tokens of the rollouts with a right answer and no wrong step."""
    return signals.filter("correct", ~(pl.col("region") == "at").any().over("rollout_id"))


def with_error(signals: pl.DataFrame) -> pl.DataFrame:
    """Step tokens of wrong rollouts in which a step is known to be the first wrong one."""
    steps = signals.filter(~pl.col("correct"), pl.col("region").is_in(REGIONS))
    erring = steps.filter(region="at").select("rollout_id").unique()
    return steps.join(erring, on="rollout_id", how="semi", maintain_order="left")


def _groups(frame: pl.DataFrame, by: Sequence[str]) -> list[tuple[dict[str, object], pl.DataFrame]]:
    """Return the groups in order of their values, with those values by column."""
    if not by or not len(frame):
        return [({}, frame)] if len(frame) else []
    groups = frame.sort(*by, _CLUSTER, "rollout_id").group_by(*by, maintain_order=True)
    return [(dict(zip(by, values)), group) for values, group in groups]


def _counts(tokens: pl.DataFrame) -> dict[str, int]:
    return {"tokens": len(tokens), "rollouts": tokens["rollout_id"].n_unique()}


def _frame(
    rows: list[dict[str, object]], signals: pl.DataFrame, keys: Sequence[str], values: Sequence[str]
) -> pl.DataFrame:
    schema: dict[str, pl.DataType] = {key: signals.schema[key] for key in keys}
    schema |= dict.fromkeys(values, pl.Float64())
    schema |= dict.fromkeys(("tokens", "rollouts"), pl.Int64())
    return pl.DataFrame(rows, schema=schema)


def _means(tokens: pl.DataFrame, of: Sequence[pl.Expr], settings: EvaluationConfig) -> Array:
    """Mean over tokens and its interval, for each of M expressions: [M, 3]."""
    sums = tokens.group_by(_CLUSTER, maintain_order=True).agg(
        tokens=pl.len(), **{f"sum_{i}": expression.sum() for i, expression in enumerate(of)}
    )
    tokens_N1 = sums.select("tokens").to_numpy()
    sums_NM = sums.drop(_CLUSTER, "tokens").to_numpy().astype(np.float64)
    return _interval(lambda n_RN: (n_RN @ sums_NM) / (n_RN @ tokens_N1), len(sums), settings)


def _area(tokens: pl.DataFrame) -> tuple[Callable[[Array], Array], int]:
    """Area under the ROC curve of a low advantage against the first wrong step, as a statistic.

    `wins_NN[i, j]` counts the pairs of a wrong step's token of problem i and another step's token
    of problem j that are in the right order, so that a resample is a quadratic form. Returns the
    statistic and the number of problems.
    """
    clusters = tokens.group_by(_CLUSTER, maintain_order=True).agg(
        at=pl.col("advantage").filter(pl.col("region") == "at"),
        other=pl.col("advantage").filter(pl.col("region") != "at").sort(),
    )
    at_N, other_N = (clusters[name].list.len().to_numpy().astype(int) for name in ("at", "other"))
    at_T = np.concatenate([at.to_numpy() for at in clusters["at"]])
    wins_TN = np.stack([_wins(at_T, other.to_numpy()) for other in clusters["other"]], axis=1)
    wins_NN = np.zeros((len(clusters), len(clusters)))
    np.add.at(wins_NN, np.repeat(np.arange(len(clusters)), at_N), wins_TN)

    def area(n_RN: Array) -> Array:
        pairs_R = (n_RN @ at_N) * (n_RN @ other_N)
        wins_R = ((n_RN @ wins_NN) * n_RN).sum(axis=1)
        return np.asarray(wins_R / np.where(pairs_R, pairs_R, np.nan))[:, None]

    return area, len(clusters)


def _wins(lower_T: Array, sorted_others: Array) -> Array:
    """Count the others that each value is below, ties as a half."""
    below_T = np.searchsorted(sorted_others, lower_T, side="left")
    not_above_T = np.searchsorted(sorted_others, lower_T, side="right")
    return np.asarray(len(sorted_others) - (below_T + not_above_T) / 2)


def _interval(
    statistic: Callable[[Array], Array], clusters: int, settings: EvaluationConfig
) -> Array:
    return bootstrap(statistic, [clusters], settings.confidence, settings.resamples)
