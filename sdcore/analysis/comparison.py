"""The paper's table from stored scores: checkpoints chosen on validation, paired differences.

Conditions are compared on the same problems with the same seeds, so a difference is taken per
problem and seed; its interval covers other problems and, with three seeds or more, other seeds; two
are too few, and `covers` says so. The base has one policy and no seed of its own: gains over it
have the seeds of the condition. What no update has changed is never compared: a condition or seed
that trained nothing is named instead.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl

from sdcore.analysis import trials as sweeps
from sdcore.analysis.health import run_alarms
from sdcore.analysis.intervals import Array, Interval, grid_mean
from sdcore.analysis.metrics import METRICS, SHARE
from sdcore.analysis.signal_stats import REGIONS, correct_rollouts, region_advantages
from sdcore.config import Experiment
from sdcore.errors import DataError
from sdcore.store.database import Store
from sdcore.store.schema import TABLES

BASE = "base"
IDLE = "trained nothing"
BUDGETS = ("epochs", "tokens")

_POLICY = ("condition", "seed", "round")
_SCORED = """
    SELECT p.condition, p.seed, p.round, p.problem_id, p.avg_at_k, p.maj_at_k, p.pass_at_k
    FROM problem_scores p SEMI JOIN scores USING (score_id)
    WHERE p.experiment_id = ? AND p.split = 'test'
"""
_TRAINED = """
    SELECT condition, seed, min(round) FILTER (trained) AS first_round, count(*) AS rounds,
           count(*) FILTER (NOT trained) AS idle
    FROM trained_rounds WHERE experiment_id = ? GROUP BY ALL ORDER BY ALL
"""
_SIGNALS = """
    SELECT s.condition, s.round, s.rollout_id, r.problem_id, s.region, s.advantage, r.correct
    FROM token_signals s JOIN rollouts r USING (rollout_id)
    WHERE s.experiment_id = ? AND r.purpose = 'train'
    ORDER BY s.rollout_id, s.position
"""


@dataclass(frozen=True)
class Results:
    """The stored results of an experiment.

    `scores` has no checkpoints whose weights no update has changed, `problems` the test metrics of
    every policy per problem, `chosen` the rows of the view `chosen_checkpoints`, and `trained`
    what each condition and seed trained: columns condition, seed, first_round (null: nothing),
    rounds, idle. `stops` are the condition and seeds that ended early; scores of policies after
    their last good one are left out. So is, everywhere but in `trained`, what stands for no
    condition: trials of a sweep that were not chosen. `trials` are the rows of that table.
    """

    experiment: Experiment
    scores: pl.DataFrame
    problems: pl.DataFrame
    chosen: pl.DataFrame
    trained: pl.DataFrame
    stops: pl.DataFrame
    trials: pl.DataFrame

    @property
    def conditions(self) -> list[str]:
        """The conditions in order, without the trials that stand for none."""
        return _without(self.experiment, sweeps.losers(self.trials))

    def checkpoints(self, condition: str, budget: str) -> pl.DataFrame:
        """Return condition, seed and round of the policies that stand for a condition."""
        if condition == BASE:
            return self.scores.filter(split="test", condition=BASE).select(_POLICY)
        return self.chosen.filter(condition=condition, budget=budget).select(_POLICY)

    def mid_schedule(self, condition: str) -> bool:
        """Return whether equal sampled tokens end before the condition's schedule does."""
        rows = self.chosen.filter(condition=condition, budget="tokens", mid_schedule=True)
        return len(rows) > 0

    def idle_seeds(self, condition: str) -> list[int]:
        """Return the seeds of a condition that have finished rounds and trained nothing."""
        rows = self.trained.filter(pl.col("first_round").is_null(), condition=condition)
        return rows["seed"].to_list()

    def note(self, condition: str) -> str:
        """Return which seeds of a condition trained nothing, and which were stopped, in words."""
        idle = [] if condition == BASE else self.idle_seeds(condition)
        parts = [f"{_seeds(idle)} {IDLE}"] if idle else []
        for row in self.stops.filter(condition=condition).sort("seed").iter_rows(named=True):
            good = row["good_round"]
            parts.append(f"seed {row['seed']} stopped after round {row['round']}")
            if not good:
                parts[-1] += " without a good checkpoint"
        return "; ".join(parts)

    def interval(
        self, values_PS: Array, condition: str, limits: tuple[float, float] = (-1.0, 1.0)
    ) -> Interval:
        """Return mean and interval of a grid of values of a condition."""
        confidence = self.experiment.evaluation.confidence
        return grid_mean(values_PS, confidence, fixed=condition == BASE, limits=limits)


def results(store: Store, experiment_id: str) -> Results:
    """Load what the comparison looks at.

    Raises:
        DataError: the workspace has no such experiment.
    """
    rows = store.rows("experiments", experiment_id=experiment_id)
    if not len(rows):
        raise DataError("no such experiment", got=experiment_id, fix="`sdcore list` names them")
    trials = store.rows("trials", experiment_id=experiment_id)
    scores = candidates(store, experiment_id)
    scores = scores.filter(~pl.col("condition").is_in(sweeps.losers(trials)))
    chosen = store.query("FROM chosen_checkpoints WHERE experiment_id = ?", [experiment_id])
    return Results(
        experiment=Experiment.model_validate_json(rows["config"][0]),
        scores=scores,
        problems=store.query(_SCORED, [experiment_id]),
        # Until a trial is chosen, it is scored on validation only.
        chosen=chosen.join(scores.filter(split="test"), on="policy_id", how="semi"),
        trained=store.query(_TRAINED, [experiment_id]),
        stops=store.rows("stops", experiment_id=experiment_id),
        trials=trials,
    )


def conditions(store: Store, experiment: Experiment) -> list[str]:
    """Return the conditions in order, without trials of a sweep that were not chosen."""
    rows = store.rows("trials", experiment_id=experiment.experiment_id)
    return _without(experiment, sweeps.losers(rows))


def candidates(store: Store, experiment_id: str) -> pl.DataFrame:
    """Return the rows of `scores` that may be chosen or compared.

    These are the base's, and those of weights that an update has changed, up to the last good
    checkpoint of a run that was stopped.
    """
    trained = store.query(_TRAINED, [experiment_id])
    scores = store.rows("scores", experiment_id=experiment_id)
    return _good(_changed(scores, trained), store.rows("stops", experiment_id=experiment_id))


def summary(store: Store, experiment_id: str) -> pl.DataFrame:
    """Return one row per condition and way of choosing its checkpoint, base first.

    `validation` rows are chosen on validation and scored once on test; `optimistic` rows are the
    best test checkpoint for each metric by itself, as the paper reports, and biased upwards. A
    condition that trained nothing has rows without numbers. `covers` is the variation that the
    intervals cover, `note` what was left out.
    """
    found = results(store, experiment_id)
    base = found.checkpoints(BASE, "epochs")
    rows = [_row(found, BASE, "untrained", dict.fromkeys(METRICS, base))] if len(base) else []
    for condition in found.conditions:
        own = found.checkpoints(condition, "epochs")
        if len(own):
            best = {metric: best_test_rounds(found.scores, condition, metric) for metric in METRICS}
            rows.append(_row(found, condition, "validation", dict.fromkeys(METRICS, own)))
            rows.append(_row(found, condition, "optimistic", best))
        elif found.idle_seeds(condition):
            rows.append({"condition": condition, "checkpoint": "validation", "note": IDLE})
            rows.append({"condition": condition, "checkpoint": "optimistic", "note": IDLE})
        elif note := found.note(condition):
            rows.append({"condition": condition, "checkpoint": "validation", "note": note})
            rows.append({"condition": condition, "checkpoint": "optimistic", "note": note})
    return pl.DataFrame(rows, schema=_SUMMARY, orient="row")


def comparisons(store: Store, experiment_id: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows of the tables `comparisons` and `seed_differences`.

    Every pair of conditions that trained, and each against the base, on the seeds that both have.
    A condition without a checkpoint within the budget is not compared at it.
    """
    found = results(store, experiment_id)
    means: list[dict[str, object]] = []
    seeds: list[dict[str, object]] = []
    for budget in BUDGETS:
        for baseline, condition in combinations([BASE, *found.conditions], 2):
            paired = _paired_checkpoints(found, condition, baseline, budget)
            if not len(paired):
                continue
            pair = {"experiment_id": experiment_id, "condition": condition, "baseline": baseline}
            caveat = _caveat(found, paired, (condition, baseline), budget)
            for metric in METRICS:
                names = pair | {"metric": metric, "budget": budget}
                difference_PS = _differences(found, paired, condition, baseline, metric)
                mean = found.interval(difference_PS, condition)
                means.append(
                    names
                    | {"difference": mean.value, "low": mean.low, "high": mean.high}
                    | {"covers": mean.covers, "seeds": len(paired), "caveat": caveat}
                )
                seeds += [
                    names | row | {"difference": float(difference)}
                    for row, difference in zip(
                        paired.to_dicts(), difference_PS.mean(axis=0), strict=True
                    )
                ]
    tables = TABLES["comparisons"], TABLES["seed_differences"]
    return tables[0].frame(means), tables[1].frame(seeds)


def curves(store: Store, experiment_id: str) -> pl.DataFrame:
    """Return test accuracy against training, over seeds, for the learning curves.

    Columns: condition, round, sampled_tokens, k, seeds, value, low, high, covers. Checkpoints whose
    weights no update has changed are left out, and rounds that some seed of the condition lacks.
    """
    found = results(store, experiment_id)
    test = of_all_seeds(found.scores.filter(split="test")).sort("condition", "round", "seed")
    rows = []
    for (condition, round_), scores in test.group_by("condition", "round", maintain_order=True):
        grid_PS = _grid(found, scores.select(_POLICY), "avg_at_k")
        mean = found.interval(grid_PS, str(condition), SHARE)
        rows.append(
            {"condition": condition, "round": round_, "seeds": len(scores), "k": scores["k"][0]}
            | {"sampled_tokens": scores["sampled_tokens"].mean()}
            | {"value": mean.value, "low": mean.low, "high": mean.high, "covers": mean.covers}
        )
    return pl.DataFrame(rows, schema=_CURVES)


def signal_summary(store: Store, experiment_id: str) -> pl.DataFrame:
    """Return what the contexts say, by condition and round (nats per token).

    Mean advantage before, at and after the first wrong step of wrong rollouts, and on correct
    rollouts the share of tokens to which the context objects; each with an interval over problems,
    for the policies of these seeds.
    """
    found = results(store, experiment_id)
    signals = store.query(_SIGNALS, [experiment_id])
    signals = signals.filter(pl.col("condition").is_in(found.conditions))
    by, settings = ["condition", "round"], found.experiment.evaluation
    regions = region_advantages(signals, by, settings).pivot(
        "region", REGIONS, index=by, values=["mean", "low", "high"]
    )
    share = ["negative_share", "negative_share_low", "negative_share_high"]
    correct = correct_rollouts(signals, by, settings).select(*by, *share, correct_mean="mean")
    return regions.join(correct, on=by, how="full", coalesce=True).sort(by)


def warnings(store: Store, experiment_id: str) -> pl.DataFrame:
    """Return warnings that a reader should see first: columns condition and warning.

    Winners of a sweep at an edge, unequal budgets, conditions that trained nothing, and signs of
    a collapse.
    """
    loaded = results(store, experiment_id)
    trained = loaded.trained
    found = list(sweeps.warnings(loaded.experiment, loaded.trials))
    for (condition,), rows in trained.group_by("condition", maintain_order=True):
        name, idle = str(condition), rows.filter(pl.col("first_round").is_null())["seed"].to_list()
        rounds, total = rows["idle"].sum(), rows["rounds"].sum()
        if len(idle) == len(rows):
            tried = "1 round" if total == 1 else f"{total} rounds"
            found.append((name, f"{IDLE}: no update in {tried}; not compared"))
        elif idle:
            found.append((name, f"{_seeds(idle)} {IDLE}: left out of every mean"))
        if rounds and len(idle) < len(rows):
            found.append((name, f"{rounds} of {total} rounds {IDLE}"))
    ended = {(row["condition"], row["seed"]): row for row in loaded.stops.to_dicts()}
    for (condition, seed), signs in run_alarms(store, loaded.experiment).items():
        stop = ended.get((condition, seed))
        found += [
            (condition, f"seed {seed}, {sign.rounds}: {sign.text}")
            for sign in signs
            if stop is None or sign.sign != stop["sign"]
        ]
        if stop:
            compared = (
                f"compared up to the policy after {stop['good_round']} rounds"
                if stop["good_round"]
                else "not compared, for want of a good checkpoint"
            )
            text = f"seed {seed} stopped after round {stop['round']}: {stop['reason']}; {compared}"
            found.append((condition, text))
    schema = {"condition": pl.String(), "warning": pl.String()}
    return pl.DataFrame(found, schema=schema, orient="row")


def best_test_rounds(scores: pl.DataFrame, condition: str, metric: str) -> pl.DataFrame:
    """Return the policies of a condition at its round with the best mean test metric over seeds.

    Columns: condition, seed, round.
    """
    test = of_all_seeds(scores.filter(split="test", condition=condition))
    means = (
        test.group_by("round")
        .agg(pl.col(metric).mean())
        .sort(metric, "round", descending=[True, False])
    )
    return test.filter(round=means["round"][0]).select(_POLICY).sort(_POLICY)


def of_all_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the rounds that the same seeds of a condition have, as many as can be.

    In a mean over seeds one that was stopped would be missing from its later rounds.
    """
    by, names = ["condition", "round"], pl.col("seed").unique().sort().cast(pl.String)
    rounds = rows.group_by(by).agg(seeds=names.str.join(" "), count=pl.col("seed").n_unique())
    most = rounds.sort("count", "round").group_by("condition").agg(pl.col("seeds").last())
    kept = rounds.join(most, on=["condition", "seeds"], how="semi")
    return rows.join(kept, on=by, how="semi", maintain_order="left")


def _without(experiment: Experiment, losers: set[str]) -> list[str]:
    return [name for name in experiment.conditions if name not in losers]


def _changed(scores: pl.DataFrame, trained: pl.DataFrame) -> pl.DataFrame:
    """Scores of the base, and of weights that an update has changed."""
    first = trained.select("condition", "seed", "first_round")
    joined = scores.join(first, on=["condition", "seed"], how="left", maintain_order="left")
    changed = (pl.col("condition") == BASE) | (pl.col("round") > pl.col("first_round"))
    return joined.filter(changed).drop("first_round")


def _good(scores: pl.DataFrame, stops: pl.DataFrame) -> pl.DataFrame:
    """Scores without those of policies after the last good one of a run that was stopped."""
    last = stops.select("condition", "seed", "good_round")
    joined = scores.join(last, on=["condition", "seed"], how="left", maintain_order="left")
    good = pl.col("good_round").is_null() | (pl.col("round") <= pl.col("good_round"))
    return joined.filter(good).drop("good_round")


def _grid(found: Results, policies: pl.DataFrame, metric: str) -> Array:
    """Values of a metric by problem and policy, [P, S], in the order of the policies."""
    names = {name: policies[name].to_list() for name in _POLICY}
    columns = [
        found.problems.filter(condition=condition, seed=seed, round=round_).sort("problem_id")
        for condition, seed, round_ in zip(*names.values(), strict=True)
    ]
    if any(not column["problem_id"].equals(columns[0]["problem_id"]) for column in columns):
        raise DataError(
            "policies were scored on different problems",
            got=[len(column) for column in columns],
            where=found.experiment.experiment_id,
            fix="`sdcore resume` scores what is missing",
        )
    return np.stack([column[metric].to_numpy() for column in columns], axis=1)


def _paired_checkpoints(found: Results, condition: str, baseline: str, budget: str) -> pl.DataFrame:
    """Seed, round and baseline_round of the policies to compare; the base pairs with any seed."""
    one, other = (found.checkpoints(name, budget) for name in (condition, baseline))
    theirs = other.select("seed", baseline_round="round")
    if baseline == BASE:
        pairs = one.join(theirs.drop("seed"), how="cross")
    else:
        pairs = one.join(theirs, on="seed")
    return pairs.sort("seed").select("seed", "round", "baseline_round")


def _differences(
    found: Results, paired: pl.DataFrame, condition: str, baseline: str, metric: str
) -> Array:
    """Differences per problem and seed, [P, S]."""
    mine = paired.select(pl.lit(condition).alias("condition"), "seed", "round")
    if baseline == BASE:
        theirs = found.checkpoints(BASE, "epochs")  # one policy, the same for every seed
    else:
        theirs = paired.select(pl.lit(baseline).alias("condition"), "seed", round="baseline_round")
    return _grid(found, mine, metric) - _grid(found, theirs, metric)


def _caveat(
    found: Results, paired: pl.DataFrame, names: tuple[str, str], budget: str
) -> str | None:
    if budget != "tokens":
        return None
    total = found.experiment.training.rounds
    rounds = dict(zip(names, ("round", "baseline_round"), strict=True))
    cut = [
        f"{name} at round {_listed(paired[rounds[name]].to_list())} of {total}"
        for name in names
        if found.mid_schedule(name)
    ]
    if not cut:
        return None
    return f"{' and '.join(cut)}: in the middle of its schedule, not a run planned for this budget"


def _row(
    found: Results, condition: str, checkpoint: str, rounds: dict[str, pl.DataFrame]
) -> dict[str, object]:
    policies = rounds["avg_at_k"]
    of_avg = found.scores.filter(split="test").join(policies, on=_POLICY)
    row: dict[str, object] = {
        "condition": condition,
        "checkpoint": checkpoint,
        "seeds": len(policies),
        "rounds": " ".join(dict.fromkeys("/".join(map(str, rounds[m]["round"])) for m in METRICS)),
        "k": found.experiment.evaluation.samples,
        "problems": of_avg["problems"].max(),
        "note": found.note(condition),
    }
    for metric in METRICS:
        mean = found.interval(_grid(found, rounds[metric], metric), condition, SHARE)
        row |= _columns(metric, mean) | {"covers": mean.covers}
    if condition != BASE:
        base = _grid(found, found.checkpoints(BASE, "epochs"), "avg_at_k")
        gain_PS = _grid(found, policies, "avg_at_k") - base
        row |= _columns("gain", found.interval(gain_PS, condition))
    for column in ("mean_length", "format_rate", "sampled_tokens"):
        row[column] = of_avg[column].mean()
    return row


def _columns(name: str, mean: Interval) -> dict[str, float]:
    return {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _listed(rounds: list[int]) -> str:
    """The rounds, once where all are the same: "2" or "2/2/4"."""
    return str(rounds[0]) if len(set(rounds)) == 1 else "/".join(map(str, rounds))


_NUMBERS = [f"{name}{end}" for name in (*METRICS, "gain") for end in ("", "_low", "_high")] + [
    "mean_length",
    "format_rate",
    "sampled_tokens",
]
_SUMMARY = pl.Schema(
    dict.fromkeys(("condition", "checkpoint"), pl.String())
    | {"seeds": pl.Int64(), "rounds": pl.String(), "k": pl.Int64(), "problems": pl.Int64()}
    | dict.fromkeys(_NUMBERS, pl.Float64())
    | dict.fromkeys(("covers", "note"), pl.String())
)
_CURVES = pl.Schema(
    {"condition": pl.String(), "round": pl.Int64(), "seeds": pl.Int64(), "k": pl.Int64()}
    | {"sampled_tokens": pl.Float64()}
    | dict.fromkeys(("value", "low", "high"), pl.Float64())
    | {"covers": pl.String()}
)
