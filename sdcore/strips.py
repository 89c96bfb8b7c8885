"""The preflight's figure: one trace under several contexts, tokens coloured by advantage."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sdcore.heatmaps import Example, Heatmap, Line
from sdcore.pages import LEGEND
from sdcore.plots import COLOURS, INK

_HUES = {"p": COLOURS[0], "n": COLOURS[1]}  # confirms, objects
_OPACITY = (0.12, 0.24, 0.40, 0.58, 0.80)  # by how many thresholds are reached, as on the page
_SIZE = 10.0  # of the font, points
_CHARACTER, _LINE = 0.602 * _SIZE, 1.7 * _SIZE  # points; DejaVu Sans Mono is 0.602 em wide
_COLUMNS, _GAP = 2, 4  # blocks beside each other, and characters between them
_STYLE = {"font.family": "DejaVu Sans Mono", "font.size": _SIZE, "text.color": INK}


def strips(example: Example) -> Figure:
    """A block of coloured lines for each context, two beside each other; a step is a line."""
    lines = example.maps[0].lines
    width = _GAP + max([36, *(sum(len(token.text) for token in line.tokens) for line in lines)])
    height = len(lines) + 2
    rows = -(-len(example.maps) // _COLUMNS)
    size = (_COLUMNS * width + 2, rows * height + 3)  # characters, lines
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(size[0] * _CHARACTER / 72, size[1] * _LINE / 72))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, size[0] - 1), ylim=(size[1], 0))
        axes.set_axis_off()
        answer = f"answered {example.answer or 'nothing'}, correct is {example.reference}"
        _text(axes, 0, 1, f"{example.question}  {answer}")
        for index, heatmap in enumerate(example.maps):
            _block(axes, index % _COLUMNS * width, 2.5 + index // _COLUMNS * height, heatmap)
        _legend(axes, size[1] - 0.8)
    return figure


def _block(axes: Axes, x: float, y: float, heatmap: Heatmap) -> None:
    _text(axes, x, y, heatmap.name, weight="bold")
    for number, line in enumerate(heatmap.lines, 1):
        _strip(axes, x, y + number, line)


def _strip(axes: Axes, x: float, y: float, line: Line) -> None:
    if line.region == "at":
        _text(axes, x - 1, y, "✗")
    for token in line.tokens:
        _patch(axes, x, y, len(token.text), token.level)
        _text(axes, x, y, token.text.replace("\n", " "))
        x += len(token.text)


def _legend(axes: Axes, y: float) -> None:
    x = 0.0
    for level, label in [("", "objects"), *LEGEND, ("", "confirms (nats)")]:
        _patch(axes, x, y, len(label) + 1, level)
        _text(axes, x + 0.5, y, label)
        x += len(label) + 1


def _patch(axes: Axes, x: float, y: float, width: float, level: str) -> None:
    if level:
        hue, opacity = _HUES[level[0]], _OPACITY[int(level[1]) - 1]
        axes.add_patch(Rectangle((x, y - 0.42), width, 0.84, color=hue, alpha=opacity, lw=0))


def _text(axes: Axes, x: float, y: float, text: str, weight: str = "normal") -> None:
    escaped = text.replace("$", r"\$")  # no mathematics in what a model wrote
    axes.text(x, y, escaped, va="center_baseline", weight=weight)
