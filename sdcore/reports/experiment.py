"""An experiment as one self-contained HTML page, which loads nothing and runs no script."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure

from sdcore.analysis import comparison, signal_stats
from sdcore.analysis.metrics import METRICS
from sdcore.config import Experiment, as_toml
from sdcore.errors import DataError
from sdcore.reports import heatmaps, plots
from sdcore.reports.html import Cell, cell, render_page
from sdcore.reports.printing import BUDGETS, checkpoint_choices, covered
from sdcore.store.database import Store
from sdcore.store.sql_views import OBJECTION

Values = dict[str, Any]
"""Values of one row of a table, or of a part of the page, by name."""

_NOTHING = Cell("", "")
_SIGNALS = """
    SELECT s.condition, if(s.round = 0, 'first', 'last') AS moment, s.rollout_id, r.problem_id,
           r.correct, s.region, s.advantage
    FROM token_signals s JOIN rollouts r USING (rollout_id)
    WHERE s.experiment_id = ? AND r.purpose = 'train'
"""
_COSTS = {
    "gain": "+z.1f", "sampled_tokens": ",.0f", "sampled_tokens_per_point": ",.0f",
    "critic_tokens": ",.0f", "critic_tokens_per_point": ",.0f", "critic_cost": ".2f",
    "train_seconds": ",.0f",
}  # fmt: skip
_CRITICS = {"model": "", "traces": ",", "valid": ",", "tokens": ",", "cost": ".2f"}
_HEALTH = {
    "rounds": ",", "idle": ".0%", "rollouts": ",", "cut_off": ".1%", "ill_formed": ".1%",
    "refused": ",", "left_out": ",", "flat_groups": ",",
    "entropy_first": ".2f", "entropy_last": ".2f", "logprob_drift_max": ".1e",
}  # fmt: skip
_HEALTH_CURVES = {
    "entropy": "entropy, nats per token",
    "mean_length": "tokens per rollout",
    "format_rate": "well-formed rollouts",
    "first_token_kl": "KL at the first token, nats",
    "base_drift": "KL from the base, nats per token",
}
_BLOCKS = {
    "validation": (
        "Chosen on validation, scored once on test",
        "The checkpoint of each condition and seed that was best on the validation split.",
    ),
    "optimistic": (
        "Optimistic: the best test checkpoint for each metric by itself",
        "How the paper reports; the test split chose them, so these numbers are biased upwards.",
    ),
}

_ADDED = {
    "any context": (
        "Any context: a control, which says nothing right about the problem, instead of none",
        "other_reference, wrong_hint or shuffled",
    ),
    "right context": (
        "A right context instead of a control",
        "reference beside other_reference or wrong_hint, or step_aligned beside shuffled",
    ),
    "aligned context": (
        "An aligned context instead of the reference solution",
        "step_aligned beside reference",
    ),
    "token mask": (
        "The token mask: some tokens of the rollout instead of all",
        "a second condition that differs in the setting tokens only",
    ),
}
"""Parts of the gain, as in the view `feedback_gains`: title, and the contexts that show it."""


def write_report(store: Store, experiment_id: str, folder: Path) -> Path:
    """Write the page `<experiment_id>.html` into the folder and return its path.

    Raises:
        DataError: the workspace has no such experiment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{experiment_id}.html"
    path.write_text(render_report(store, experiment_id), "utf-8")
    return path


def render_report(store: Store, experiment_id: str) -> str:
    """The page as text; all that comes from tables is escaped.

    Raises:
        DataError: the workspace has no such experiment.
    """
    rows = store.rows("experiments", experiment_id=experiment_id).to_dicts()
    if not rows:
        raise DataError("no such experiment", got=experiment_id, fix="`sdcore list` names them")
    experiment = Experiment.model_validate_json(rows[0]["config"])
    names = comparison.conditions(store, experiment)
    return render_page(
        "report.html.jinja",
        experiment=experiment,
        experiment_id=experiment_id,
        created_at=f"{rows[0]['created_at']:%Y-%m-%d %H:%M}",
        k=experiment.evaluation.samples,
        confidence=f"{experiment.evaluation.confidence:.0%}",
        conditions={name: experiment.conditions[name] for name in names},
        colours=plots.colours(names),
        toml=as_toml(experiment.model_dump(mode="json")),
        versions={"sdcore": rows[0]["code_version"], **json.loads(rows[0]["libraries"])}.items(),
        warnings=comparison.warnings(store, experiment_id).to_dicts(),
        objection=f"{OBJECTION:g}".replace("-", "−"),
        trials=_trials(store, experiment),
        **_results(store, experiment, names),
        costs=_view(store, "cost_per_point", experiment, _COSTS),
        critics=_view(store, "critic_use", experiment, _CRITICS),
        health=_view(store, "training_health", experiment, _HEALTH),
        health_curves=_health_curves(store, experiment, names),
        **_signals(store, experiment, names),
        **_examples(store, experiment, names),
    )


def _trials(store: Store, experiment: Experiment) -> list[Values]:
    """The trials of each condition with lists, the chosen one marked."""
    rows = store.rows("trials", experiment_id=experiment.experiment_id)
    return [
        {
            "family": str(family),
            "rows": [
                row
                | {
                    "values": _settings(json.loads(row["setting_values"])),
                    "score": "—" if row["validation"] is None else f"{100 * row['validation']:.1f}",
                    "tokens": _text(row["sampled_tokens"], ",.0f"),
                }
                for row in trials.to_dicts()
            ],
        }
        for (family,), trials in rows.group_by("condition", maintain_order=True)
    ]


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _results(store: Store, experiment: Experiment, names: list[str]) -> Values:
    run = {"experiment_id": experiment.experiment_id}
    scores = store.rows("scores", **run)
    if not len(scores.filter(pl.col("split") == "test", pl.col("condition") != comparison.BASE)):
        return {
            "tiles": [],
            "seeds": [],
            "result_blocks": [],
            "comparisons": [],
            "added": [],
            "caveats": [],
            "curves": [],
        }
    summary = comparison.summary(store, experiment.experiment_id)
    chosen = summary.filter(checkpoint="validation")
    points = comparison.curves(store, experiment.experiment_id)
    compared = store.rows("comparisons", **run)
    by_seed = store.rows("seed_differences", **run)
    return {
        "covers": covered(chosen),
        "seeds": sorted(set(chosen["seeds"].drop_nulls())),
        "tiles": [
            {"condition": row["condition"], "gain": _gain(row), "note": row["note"]}
            for row in chosen.to_dicts()
        ],
        "result_blocks": [_block(name, summary) for name in checkpoint_choices(summary)],
        "budgets": BUDGETS,
        "comparisons": _comparisons(compared, by_seed),
        "added": _added(store, experiment),
        "compared_covers": covered(compared),
        "caveats": _caveats(compared),
        "curves": [
            _chart(plots.learning_curves(points, names, [axis]), "Learning curves by " + axis)
            for axis in ("round", "sampled_tokens")
        ],
    }


def _block(checkpoint: str, summary: pl.DataFrame) -> Values:
    title, note = _BLOCKS[checkpoint]
    shown = summary.filter(pl.col("checkpoint").is_in(["untrained", checkpoint]))
    best = {metric: shown[metric].max() for metric in METRICS}
    return {
        "title": title,
        "note": f"{note} Per cent; below each value its interval, which covers {covered(shown)} "
        "(for the base: problems).",
        "rows": [_table_row(row, best) for row in shown.to_dicts()],
    }


def _table_row(row: Values, best: Mapping[str, object]) -> Values:
    """Cells of a condition; one that trained nothing has its name and the note only."""
    if row["avg_at_k"] is None:
        return {"condition": row["condition"], "note": row["note"], "metrics": []}
    return {
        "condition": row["condition"],
        "note": row["note"],
        "metrics": [(_share(row, metric), row[metric] == best[metric]) for metric in best],
        "gain": _gain(row),
        "length": f"{row['mean_length']:.0f}",
        "format": f"{row['format_rate']:.0%}",
        "tokens": f"{row['sampled_tokens']:,.0f}",
        "rounds": row["rounds"],
    }


def _comparisons(rows: pl.DataFrame, by_seed: pl.DataFrame) -> list[Values]:
    """One row per pair: its cell at each budget, if it was compared there."""
    pairs: dict[tuple[str, str], Values] = {}
    for row in rows.filter(metric="avg_at_k").iter_rows(named=True):
        mine = by_seed.filter(
            pl.all_horizontal(pl.col(name) == row[name] for name in ("condition", "baseline")),
            metric="avg_at_k",
            budget=row["budget"],
        )
        seeds = [
            f"{seed}: {100 * difference:+z.1f}".replace("-", "−")
            for seed, difference in mine.sort("seed").select("seed", "difference").iter_rows()
        ]
        pairs.setdefault((row["condition"], row["baseline"]), {})[row["budget"]] = _difference_cell(
            row, ", ".join(seeds)
        )
    return [
        {"condition": condition, "baseline": baseline, "cells": cells}
        for (condition, baseline), cells in pairs.items()
    ]


def _added(store: Store, experiment: Experiment) -> list[Values]:
    """Return what the feedback added: for each question its pairs, or a note how to get one."""
    sql = "FROM feedback_gains WHERE experiment_id = ? AND metric = 'avg_at_k'"
    found = store.query(sql, [experiment.experiment_id])
    return [
        {"title": title, "note": note, "pairs": _added_pairs(found.filter(added=added))}
        for added, (title, note) in _ADDED.items()
    ]


def _added_pairs(rows: pl.DataFrame) -> list[Values]:
    pairs: dict[tuple[str, str], Values] = {}
    for row in rows.iter_rows(named=True):
        pair = pairs.setdefault(
            (row["condition"], row["baseline"]), {"rates_differ": row["rates_differ"], "cells": {}}
        )
        pair["cells"][row["budget"]] = _difference_cell(row)
    return [
        {"condition": condition, "baseline": baseline} | pair
        for (condition, baseline), pair in pairs.items()
    ]


def _difference_cell(row: Values, seeds: str = "") -> Values:
    return {
        "seeds": seeds,
        "points": _points(row["difference"], row["low"], row["high"]),
        "resolved": row["low"] > 0 or row["high"] < 0,
        "marked": row["caveat"] is not None,
    }


def _caveats(rows: pl.DataFrame) -> list[str]:
    return rows["caveat"].drop_nulls().unique(maintain_order=True).to_list()


def _view(
    store: Store, view: str, experiment: Experiment, forms: Mapping[str, str]
) -> list[Values]:
    """The rows of a view in the order of the conditions, its numbers as text; "—" where none is."""
    found = store.query(
        f"FROM {view} WHERE experiment_id = ?",
        [experiment.experiment_id],
    )
    return [
        {"condition": name} | {column: _text(row[column], forms[column]) for column in forms}
        for name in experiment.conditions
        for row in found.filter(condition=name).iter_rows(named=True)
    ]


def _health_curves(store: Store, experiment: Experiment, names: list[str]) -> list[Markup]:
    """A chart for each sign of health that any condition has."""
    sql = "FROM round_health WHERE experiment_id = ? ORDER BY condition, seed, round"
    rounds = store.query(sql, [experiment.experiment_id]).filter(pl.col("condition").is_in(names))
    return [
        _chart(plots.health_curve(known, names, column, title), f"{title}, by training round")
        for column, title in _HEALTH_CURVES.items()
        if len(known := comparison.of_all_seeds(rounds.drop_nulls(column)))
    ]


def _text(value: float | str | None, form: str) -> str:
    if isinstance(value, str):
        return value
    return "—" if value is None else f"{value:{form}}".replace("-", "−")


def _signals(store: Store, experiment: Experiment, names: list[str]) -> Values:
    tokens = store.query(_SIGNALS, [experiment.experiment_id])
    tokens, by = tokens.filter(pl.col("condition").is_in(names)), ("condition", "moment")
    regions = signal_stats.region_advantages(tokens, by, experiment.evaluation)
    correct = signal_stats.correct_rollouts(tokens, by, experiment.evaluation)
    aucs = signal_stats.error_auc(tokens, by, experiment.evaluation)
    moments = [moment for moment in ("first", "last") if moment in tokens["moment"]]
    found = regions, aucs, correct
    rows = [_signal_row(name, moment, *found) for name in names for moment in moments]
    bars = [
        _chart(plots.advantage_bars(regions, names, [moment]), f"Advantage, {moment} round")
        for moment in moments
        if len(regions)
    ]
    return {"bars": bars, "signals": rows}


def _signal_row(
    name: str, moment: str, regions: pl.DataFrame, aucs: pl.DataFrame, correct: pl.DataFrame
) -> Values:
    own = {"condition": name, "moment": moment}
    row: Values = dict(own)
    for found in regions.filter(**own).to_dicts():
        row[found["region"]] = cell([found["mean"], found["low"], found["high"]], "+z.2f", " to ")
    for found in aucs.filter(**own).to_dicts():
        row["auc"] = cell([found["auc"], found["low"], found["high"]], ".2f", " – ")
    for found in correct.filter(**own).to_dicts():
        row["negative"] = _share(found, "negative_share")
    return row


def _examples(store: Store, experiment: Experiment, names: list[str]) -> Values:
    found = [
        *heatmaps.examples(store, experiment.experiment_id, names, correct=False, count=2),
        *heatmaps.examples(store, experiment.experiment_id, names, correct=True, count=1),
    ]
    return {"examples": found}


def _chart(figure: Figure, label: str) -> Markup:
    return Markup(plots.svg(figure, label.replace("_", " ")))  # noqa: S704 - drawn by us


def _share(row: Values, metric: str) -> Cell:
    """A share and its interval in per cent."""
    return cell([100 * row[f"{metric}{end}"] for end in ("", "_low", "_high")], ".1f", " – ")


def _points(value: float, low: float, high: float) -> Cell:
    """A difference of shares and its interval in percentage points, with signs."""
    return cell([100 * value, 100 * low, 100 * high], "+z.1f", " to ")


def _gain(row: Values) -> Cell:
    if row["gain"] is None:  # of the base, and of what trained nothing
        return _NOTHING
    return _points(row["gain"], row["gain_low"], row["gain_high"])
