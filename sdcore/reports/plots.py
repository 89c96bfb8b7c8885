"""Figures of an experiment: frames in, matplotlib figures out; one colour per condition."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

# Okabe and Ito's colour-blind safe set (https://jfly.uni-koeln.de/color/), less black and yellow,
# then the dark ones of Tol's muted set (https://sronpersonalpages.nl/~pault/).
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00",
    "#332288", "#882255", "#117733", "#999933", "#AA4499", "#44AA99",
)  # fmt: skip
MARKERS = "osD^vPX<>ph*"
INK = "#1f2328"
REGIONS = ("before", "at", "after")
_AXES = {"round": "rounds of training", "sampled_tokens": "tokens sampled in training"}
_STYLE = {
    "font.family": "sans-serif", "font.size": 10, "axes.titlesize": 10, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, in the page's font
}  # fmt: skip


def colours(conditions: Sequence[str]) -> dict[str, str]:
    """The colour of each condition, by its place in the experiment file."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(conditions)}


def learning_curves(
    curves: pl.DataFrame,
    conditions: Sequence[str],
    axes: Sequence[str] = ("round", "sampled_tokens"),
) -> Figure:
    """Test accuracy (avg@k) against training, one panel for each of `axes`.

    Args:
        curves: the frame of `comparison.curves`: means over the same seeds, intervals as bands.
        conditions: names in the order of the experiment file; 'base' is the dashed line.
        axes: columns of `scores` to draw against.
    """
    base = curves.filter(pl.col("condition") == "base")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(0.2 + 4.1 * len(axes), 3.3), layout="constrained")
        for panel, axis in zip(_panels(figure, len(axes)), axes, strict=True):
            for name, colour, marker in _looks(conditions):
                curve = pl.concat([base, curves.filter(pl.col("condition") == name)])
                _curve(panel, curve, axis, name, colour, marker)
            _base_line(panel, base)
            _finish_curves(panel, axis, int(curves["k"].max() or 0))  # type: ignore[arg-type]
        _legend(figure)
    return figure


def health_curve(
    rounds: pl.DataFrame, conditions: Sequence[str], column: str, title: str
) -> Figure:
    """One sign of health by training round: a line per condition, the mean over seeds.

    Args:
        rounds: rows of the view `round_health`, of rounds that all seeds of a condition have.
        conditions: names in the order of the experiment file.
        column: what to draw; conditions without any value are left out.
        title: what it is, with its unit.
    """
    by = ["condition", "round"]
    means = rounds.drop_nulls(column).group_by(by).agg(pl.col(column).mean()).sort(by)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.3, 3.3), layout="constrained")
        (panel,) = _panels(figure, 1)
        for name, colour, marker in _looks(conditions):
            curve = means.filter(condition=name)
            if len(curve):
                x, y = curve["round"].to_list(), curve[column].to_list()
                panel.plot(x, y, color=colour, marker=marker, markersize=3, label=name)
        panel.set_xlabel(_AXES["round"])
        panel.set_title(title, loc="left")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if column == "format_rate":
            panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        _legend(figure)
    return figure


def advantage_bars(
    signals: pl.DataFrame, conditions: Sequence[str], moments: Sequence[str] = ("first", "last")
) -> Figure:
    """Mean advantage before, at and after the first wrong step of wrong rollouts.

    Args:
        signals: columns condition, moment ('first' or 'last' round), region, mean, low, high;
            advantages in nats per token.
        conditions: names in the order of the experiment file.
        moments: one panel each; all panels share the scale of the whole frame.
    """
    known = signals.select(pl.col("mean", "low", "high").fill_nan(None))
    limits = known.min_horizontal().min(), known.max_horizontal().max()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(0.2 + 4.1 * len(moments), 3.3), layout="constrained")
        for panel, moment in zip(_panels(figure, len(moments)), moments, strict=True):
            _bars(panel, signals.filter(pl.col("moment") == moment), conditions)
            panel.set_ylim(*_widened(*limits))  # type: ignore[arg-type]
            panel.set_title(f"advantage, {moment} round", loc="left")
        _legend(figure)
    return figure


def scatter(
    points: pl.DataFrame, titles: Mapping[str, str], groups: Sequence[str], label: str
) -> Figure:
    """One panel per measure: its value against the gain of a condition, a colour per token mask.

    Args:
        points: columns tokens (the mask), training_gain, low, high, and the measures.
        titles: the panels' titles, by column of the measure.
        groups: the masks.
        label: of the vertical axis.
    """
    columns = min(4, len(titles))
    rows = -(-len(titles) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(0.4 + 2.7 * columns, 0.5 + 2.3 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for panel, (column, title) in zip(panels, titles.items(), strict=False):
            for group, colour, marker in _looks(groups):
                own = points.filter(tokens=group).drop_nulls(column)
                y = own["training_gain"]
                panel.errorbar(
                    own[column], y, yerr=[y - own["low"], own["high"] - y], fmt=marker,
                    color=colour, markersize=4, elinewidth=0.8, label=group,
                )  # fmt: skip
            panel.axhline(0, color=INK, linewidth=0.8)
            panel.set_title(title, loc="left")
        for panel in panels[len(titles) :]:
            panel.set_visible(False)
        for panel in panels[::columns]:
            panel.set_ylabel(label)
        _legend(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG on white, twice the size on screen."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=192, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element to put into a page, in the text colour of its surroundings.

    Args:
        figure: one of this module's figures.
        label: description for screen readers, plain text without markup.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": label}):  # makes its ids unique in the page
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", drawing)  # the same in every figure
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _panels(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _looks(conditions: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, colour and marker of each condition; where colours begin again, markers shift."""
    return [
        (name, colour, MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, (name, colour) in enumerate(colours(conditions).items())
    ]


def _curve(
    panel: Axes, curve: pl.DataFrame, axis: str, name: str, colour: str, marker: str
) -> None:
    x = curve[axis].to_list()
    panel.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.16, linewidth=0)
    panel.plot(x, curve["value"], color=colour, marker=marker, markersize=4, label=name)


def _base_line(panel: Axes, base: pl.DataFrame) -> None:
    for accuracy in base["value"]:
        panel.axhline(accuracy, color=INK, linestyle=(0, (4, 3)), linewidth=1, label="base")


def _finish_curves(panel: Axes, axis: str, k: int) -> None:
    panel.set_xlabel(_AXES[axis])
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if axis == "sampled_tokens":
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.set_title(f"test avg@{k}", loc="left")
    panel.set_ylim(bottom=0)
    panel.set_xlim(left=0)
    panel.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)


def _bars(panel: Axes, signals: pl.DataFrame, conditions: Sequence[str]) -> None:
    width = 0.8 / len(conditions)
    for i, (name, colour) in enumerate(colours(conditions).items()):
        rows = signals.filter(pl.col("condition") == name)
        known = {row["region"]: row for row in rows.iter_rows(named=True)}
        drawn = [(j, known[region]) for j, region in enumerate(REGIONS) if region in known]
        x = [j + (i - (len(conditions) - 1) / 2) * width for j, _ in drawn]
        means = [row["mean"] for _, row in drawn]
        errors = [
            [row["mean"] - row["low"] for _, row in drawn],
            [row["high"] - row["mean"] for _, row in drawn],
        ]
        panel.bar(x, means, width * 0.92, color=colour, label=name, yerr=errors,
                  error_kw={"ecolor": INK, "elinewidth": 1})  # fmt: skip
    panel.axhline(0, color=INK, linewidth=0.8)
    panel.set_xticks(range(len(REGIONS)), ["before", "at the first\nwrong step", "after"])
    panel.set_xlim(-0.5, len(REGIONS) - 0.5)
    panel.tick_params(axis="x", length=0)
    panel.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    panel.set_axisbelow(True)


def _widened(low: float | None, high: float | None) -> tuple[float, float]:
    bottom, top = min(low or 0.0, 0.0), max(high or 0.0, 0.0)
    margin = 0.06 * (top - bottom or 1.0)
    return bottom - margin, top + margin


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(len(labels), 2 * len(figure.axes))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=1.8)
