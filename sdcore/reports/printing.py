"""The summary as text tables: shares in per cent, each with its interval and what it covers."""

import math
from collections.abc import Iterator

import polars as pl

from sdcore.store.sql_views import OBJECTION

_METRICS = {"pass_at_k": "pass", "maj_at_k": "maj", "avg_at_k": "avg"}
_CHECKPOINTS = {
    "validation": "checkpoint chosen on validation, scored once on test",
    "optimistic": "optimistic: best test checkpoint for each metric, as the paper reports",
}

_OBJECTED = f"tokens < {OBJECTION:g} on correct rollouts".replace("-", "−")
BUDGETS = {"epochs": "equal epochs", "tokens": "equal sampled tokens"}


def printable(
    summary: pl.DataFrame,
    comparisons: pl.DataFrame,
    seed_differences: pl.DataFrame,
    signals: pl.DataFrame,
    warnings: pl.DataFrame,
    trials: pl.DataFrame,
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield titles and text frames of the printed summary, from the frames of `comparison`."""
    if len(warnings):
        yield "WARNING", warnings
    if len(trials):
        yield f"trials, chosen on validation; {trial_counts(trials)}", _trials(trials)
    for checkpoint in checkpoint_choices(summary):
        rows = summary.filter(pl.col("checkpoint").is_in(["untrained", checkpoint]))
        if len(rows):
            yield f"{_CHECKPOINTS[checkpoint]}; intervals cover {covered(rows)}", _scores(rows)
    compared = comparisons.filter(metric="avg_at_k")
    for budget, title in _budgets(compared).items():
        rows = compared.filter(budget=budget)
        if len(rows):
            seeds = seed_differences.filter(budget=budget, metric="avg_at_k")
            yield (
                f"paired difference in avg@k at {title}, points; intervals cover {covered(rows)}",
                _differences(rows, seeds),
            )
    if len(signals):
        yield (
            "mean advantage by region of wrong rollouts, nats per token; intervals cover problems, "
            "for the policies of these seeds",
            _signals(signals),
        )


def checkpoint_choices(summary: pl.DataFrame) -> list[str]:
    """Return the ways of choosing checkpoints; the second one only where it makes a difference.

    It makes none where each condition has one scored checkpoint.
    """
    choices = list(_CHECKPOINTS)
    first, second = (summary.filter(checkpoint=each).drop("checkpoint") for each in choices)
    return choices[:1] if first.equals(second) else choices


def covered(rows: pl.DataFrame) -> str:
    """Return what the intervals of these rows of trained conditions cover, in words."""
    named = rows.filter(pl.col("condition") != "base")["covers"].drop_nulls().unique().sort()
    return " / ".join(named) or "problems"


def trial_counts(trials: pl.DataFrame) -> str:
    """Return how many trials each condition had, such as `trials: grpo 4, reference 4`."""
    counts = trials.group_by("condition", maintain_order=True).len()
    return "trials: " + ", ".join(f"{name} {count}" for name, count in counts.iter_rows())


def markdown(frame: pl.DataFrame) -> str:
    """A text frame as a Markdown table."""
    rows = [frame.columns, ["---"] * frame.width, *frame.iter_rows()]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def _scores(rows: pl.DataFrame) -> pl.DataFrame:
    k = rows["k"].drop_nulls()[0]
    metrics = {f"{title}@{k}": _percent(name) for name, title in _METRICS.items()}
    return rows.select(
        "condition",
        **metrics,
        gain=_points("gain"),
        length=pl.col("mean_length").round(1).cast(pl.String),
        format=(pl.col("format_rate") * 100).round(1).cast(pl.String),
        tokens=pl.col("sampled_tokens").round().cast(pl.Int64).cast(pl.String),
        rounds="rounds",
        note="note",
    ).fill_null("")


def _trials(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(
        "condition",
        "trial",
        pl.col("setting_values").alias("values"),
        (pl.col("validation") * 100).round(1).cast(pl.String).fill_null("").alias("validation"),
        pl.when("chosen").then(pl.lit("yes")).otherwise(pl.lit("")).alias("chosen"),
        "why",
    )


def _differences(rows: pl.DataFrame, seeds: pl.DataFrame) -> pl.DataFrame:
    """Pairs with their mean difference, that of each seed, and the caveat if there is one."""
    points = (100 * pl.col("difference")).map_elements(_signed, pl.String)
    by_seed = seeds.group_by("condition", "baseline").agg(
        pl.concat_str("seed", pl.lit(": "), points).sort_by("seed").str.join(", ").alias("by seed")
    )
    shown = rows.join(by_seed, on=["condition", "baseline"], how="left", maintain_order="left")
    caveat = [pl.col("caveat").fill_null("").alias("note")] if rows["caveat"].count() else []
    return shown.select(
        pl.concat_str("condition", pl.lit(" − "), "baseline").alias("pair"),
        _points("difference", "low", "high").alias("difference"),
        pl.col("by seed").fill_null(""),
        *caveat,
    )


def _budgets(compared: pl.DataFrame) -> dict[str, str]:
    """Titles by budget; one for both where they give the same differences."""
    shown = ("condition", "baseline", "difference", "low", "high", "caveat")
    epochs, tokens = (compared.filter(budget=budget).select(shown) for budget in BUDGETS)
    if epochs.equals(tokens):
        return {"epochs": " and ".join(BUDGETS.values())}
    return BUDGETS


def _signals(rows: pl.DataFrame) -> pl.DataFrame:
    regions = {name: _interval(f"mean_{name}") for name in ("before", "at", "after")}
    return rows.select(
        "condition",
        pl.col("round").cast(pl.String),
        **{f"{name} first error": text for name, text in regions.items()},
        **{_OBJECTED: _percent("negative_share")},
    )


def _signed(points: float) -> str:
    return f"{points:+z.1f}"


def _percent(name: str) -> pl.Expr:
    return _text(name, f"{name}_low", f"{name}_high", 100, "{:.1f}", "{:.1f}–{:.1f}")


def _points(name: str, low: str | None = None, high: str | None = None) -> pl.Expr:
    low, high = low or f"{name}_low", high or f"{name}_high"
    return _text(name, low, high, 100, "{:+z.1f}", "{:+z.1f} to {:+z.1f}")


def _interval(name: str) -> pl.Expr:
    low, high = name.replace("mean", "low"), name.replace("mean", "high")
    return _text(name, low, high, 1, "{:+z.3f}", "{:+z.3f} to {:+z.3f}")


def _text(name: str, low: str, high: str, scale: float, value: str, interval: str) -> pl.Expr:
    """'value (interval)'; empty without a value, the value alone without an interval."""

    def cell(row: dict[str, float | None]) -> str:
        known = {key: scale * x for key, x in row.items() if x is not None and not math.isnan(x)}
        if name not in known:
            return ""
        bounds = f" ({interval.format(known[low], known[high])})" if len(known) == 3 else ""
        return value.format(known[name]) + bounds

    return pl.struct(name, low, high).map_elements(cell, pl.String).alias(name)
