"""The result of `sdcore predict`: text tables and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from sdcore.analysis.prediction import CONTEXTS_ONLY, EVERY, MEASURES
from sdcore.reports import plots


@dataclass(frozen=True)
class Prediction:
    """The preflight's measures beside the gains of training.

    Attributes:
        conditions: one row per condition: context, tokens, verdict, training_gain with interval
            (low, high) and what it covers, seeds, and the measures of `prediction.MEASURES`.
        correlations: see `prediction.correlations`.
        verdicts: see `prediction.by_verdict`.
        thresholds: see `prediction.harm_thresholds`.
    """

    conditions: pl.DataFrame
    correlations: pl.DataFrame
    verdicts: pl.DataFrame
    thresholds: pl.DataFrame


def printable(found: Prediction) -> list[tuple[str, pl.DataFrame]]:
    """Titles and text frames, for a terminal or as Markdown."""
    covers, seeds = (
        found.conditions[name].unique().sort().cast(pl.String).str.join(separator).item()
        for name, separator in (("covers", " / "), ("seeds", " or "))
    )
    title = "Where each measure divides contexts that do harm from the others"
    cuts = [(title, _cuts(found))] if len(found.thresholds) else []
    return [
        (
            "Rank correlation of each measure with the training gain, over conditions "
            f"(intervals: {CONTEXTS_ONLY})",
            pl.DataFrame(_correlation_rows(found)),
        ),
        (
            f"Gains in points of test accuracy, seeds: {seeds} (intervals: {covers})",
            pl.DataFrame(_condition_rows(found)),
        ),
        ("Gains by verdict, points", pl.DataFrame(_verdict_rows(found))),
        *cuts,
    ]


def as_dict(found: Prediction) -> dict[str, Any]:
    """The findings as plain values; frames are lists of rows."""
    return {name: frame.fill_nan(None).to_dicts() for name, frame in vars(found).items()}


def figure(found: Prediction) -> Figure:
    """One panel per measure: its value against the training gain, a colour per token mask."""
    measures = [
        name
        for name in MEASURES
        if name in found.conditions.columns and found.conditions[name].drop_nulls().len()
    ]
    rho = {(r["measure"], r["among"]): r["rho"] for r in found.correlations.iter_rows(named=True)}
    masks = found.conditions["tokens"].unique(maintain_order=True).to_list()
    among = EVERY if len(masks) > 1 else masks[0]
    points = found.conditions.with_columns(pl.col("training_gain", "low", "high") * 100)
    titles = {name: f"{_NAMES.get(name, name)}, {_rho(rho[name, among])}" for name in measures}
    return plots.scatter(points, titles, masks, "gain, points")


_NAMES = {
    "gain": "teacher − student", "error_auc": "AUC, error", "auc": "AUC, step",
    "error": "advantage, error", "before": "advantage, before", "negative_share": "diffusion",
    "after_error": "loss after the error", "score": "score of design",
}  # fmt: skip


def _rho(value: float) -> str:
    return "ρ unknown" if value != value else f"ρ = {_signed(value, '.2f')}"


def _correlation_rows(found: Prediction) -> list[dict[str, object]]:
    return [
        {
            "measure": row["measure"],
            "expected": row["expected"],
            "among": row["among"],
            "rank correlation": _interval([row[end] for end in ("rho", "low", "high")], ".2f"),
            "conditions": row["conditions"],
            "contexts": row["contexts"],
            "is": MEASURES[row["measure"]][1],
        }
        for row in found.correlations.iter_rows(named=True)
    ]


def _condition_rows(found: Prediction) -> list[dict[str, object]]:
    return [
        {
            "condition": row["condition"],
            "context": row["context"],
            "tokens": row["tokens"],
            "verdict": row["verdict"],
            "gain": _interval([100 * row[end] for end in ("training_gain", "low", "high")], ".1f"),
        }
        for row in found.conditions.sort("training_gain", descending=True).iter_rows(named=True)
    ]


def _verdict_rows(found: Prediction) -> list[dict[str, object]]:
    return [
        {"verdict": row["verdict"], "conditions": row["conditions"]}
        | {end: _signed(100 * row[end], ".1f") for end in ("mean", "smallest", "largest")}
        for row in found.verdicts.iter_rows(named=True)
    ]


def _cuts(found: Prediction) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "measure": row["measure"],
                "harm": f"{row['harm']} a value from {_signed(row['start'], '.3f')} to "
                f"{_signed(row['end'], '.3f')}",
                "contexts": f"{row['harmful']} of {row['contexts']} harmful",
                "errors": row["errors"],
                "errors on the context left out": row["errors_left_out"],
            }
            for row in found.thresholds.iter_rows(named=True)
        ]
    )


def _interval(numbers: Sequence[float], form: str) -> str:
    value, low, high = numbers
    if value != value:
        return "unknown"
    if low != low:
        return f"{_signed(value, form)} (interval unknown)"
    return f"{_signed(value, form)} ({_signed(low, form)} to {_signed(high, form)})"


def _signed(value: float, form: str) -> str:
    return f"{value:+z{form}}".replace("-", "−")
