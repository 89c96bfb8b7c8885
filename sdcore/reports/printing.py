"""The summary as people read it: shares in per cent, each with its interval."""

import math
from collections.abc import Iterator

import polars as pl

_METRICS = {"pass_at_k": "Pass", "maj_at_k": "Maj", "avg_at_k": "Avg"}
_CHECKPOINTS = {
    "validation": "checkpoint chosen on validation, scored once on test",
    "optimistic": "optimistic: best test checkpoint for each metric, as the paper reports",
}


def printable(
    summary: pl.DataFrame, comparisons: pl.DataFrame, signals: pl.DataFrame
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Titles and text frames of the printed summary, from the frames of `comparison`."""
    for checkpoint, title in _CHECKPOINTS.items():
        rows = summary.filter(pl.col("checkpoint").is_in(["untrained", checkpoint]))
        yield title, _scores(rows)
    for budget, title in (("epochs", "at equal epochs"), ("tokens", "at equal sampled tokens")):
        rows = comparisons.filter(budget=budget, metric="avg_at_k")
        yield f"paired difference in Avg {title}, points", _differences(rows)
    yield "mean advantage by region of wrong rollouts, nats a token", _signals(signals)


def markdown(frame: pl.DataFrame) -> str:
    """A text frame as a Markdown table."""
    rows = [frame.columns, ["---"] * frame.width, *frame.iter_rows()]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def _scores(rows: pl.DataFrame) -> pl.DataFrame:
    k = rows["k"][0]
    metrics = {f"{title}@{k}": _percent(name) for name, title in _METRICS.items()}
    return rows.select(
        "condition",
        **metrics,
        gain=_points("gain"),
        length=pl.col("mean_length").round(1).cast(pl.String),
        format=(pl.col("format_rate") * 100).round(1).cast(pl.String),
        tokens=pl.col("sampled_tokens").round().cast(pl.Int64).cast(pl.String),
        rounds="rounds",
    )


def _differences(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(
        pl.format("{} − {}", "condition", "baseline").alias("pair"),
        _points("difference", "low", "high").alias("difference"),
    )


def _signals(rows: pl.DataFrame) -> pl.DataFrame:
    regions = {name: _interval(f"mean_{name}") for name in ("before", "at", "after")}
    return rows.select(
        "condition",
        pl.col("round").cast(pl.String),
        **{f"{name} first error": text for name, text in regions.items()},
        **{"tokens < −0.1 on correct rollouts": _percent("negative_share")},
    )


def _percent(name: str) -> pl.Expr:
    return _text(name, f"{name}_low", f"{name}_high", 100, "{:.1f}", "{:.1f}–{:.1f}")


def _points(name: str, low: str | None = None, high: str | None = None) -> pl.Expr:
    low, high = low or f"{name}_low", high or f"{name}_high"
    return _text(name, low, high, 100, "{:+.1f}", "{:+.1f} to {:+.1f}")


def _interval(name: str) -> pl.Expr:
    low, high = name.replace("mean", "low"), name.replace("mean", "high")
    return _text(name, low, high, 1, "{:+.3f}", "{:+.3f} to {:+.3f}")


def _text(name: str, low: str, high: str, scale: float, value: str, interval: str) -> pl.Expr:
    """'value (interval)'; empty without a value, the value alone without an interval."""

    def cell(row: dict[str, float | None]) -> str:
        known = {key: scale * x for key, x in row.items() if x is not None and not math.isnan(x)}
        if name not in known:
            return ""
        bounds = f" ({interval.format(known[low], known[high])})" if len(known) == 3 else ""
        return value.format(known[name]) + bounds

    return pl.struct(name, low, high).map_elements(cell, pl.String).alias(name)
