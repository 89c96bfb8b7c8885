"""A trace as a picture: its tokens on a grid of characters, coloured by their advantage."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle

from sdcore.reports.heatmaps import THRESHOLDS, Heatmap
from sdcore.reports.plots import COLOURS, INK

COLUMNS, POINTS = 96, 9.0
FONT = "DejaVu Sans Mono"  # comes with matplotlib
_WIDTH, _HEIGHT = 0.602 * POINTS / 72, 1.5 * POINTS / 72  # inches of a character's cell
_COLOURS = {"p": COLOURS[0], "n": COLOURS[1]}


class Cell(NamedTuple):
    """A piece of text on one row of the grid; `level` is a colour class, empty for none."""

    row: int
    column: int
    text: str
    level: str


def token_map(maps: Sequence[Heatmap], title: str) -> Figure:
    """One trace as each condition or context scored it: blue is confirmed, orange objected to."""
    drawn = list(cells(maps, title))
    width = max(cell.column + len(cell.text) for cell in drawn)
    columns, rows = width + 2, drawn[-1].row + 2  # a margin of one cell
    figure = Figure(figsize=(columns * _WIDTH, rows * _HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(-1, width + 1), ylim=(rows - 0.5, -0.5))
    for row, column, text, level in drawn:
        if level:
            colour, share = _COLOURS[level[0]], int(level[1:]) / len(THRESHOLDS)
            box = Rectangle((column, row), len(text), 1, color=colour, alpha=0.6 * share, lw=0)
            axes.add_patch(box)
        axes.text(column, row + 0.72, text, family=FONT, size=POINTS, color=INK, parse_math=False)
    return figure


def cells(maps: Sequence[Heatmap], title: str) -> Iterator[Cell]:
    """The pieces of the picture in reading order; a token that does not fit goes on a new row."""
    known = get_font(findfont(FONT)).get_charmap()

    def plain(text: str) -> str:
        """The text without line breaks and with a dot for what the font cannot draw."""
        return "".join(c if ord(c) in known and c.isprintable() else "·" for c in text.strip("\n"))

    yield Cell(0, 0, plain(title)[:COLUMNS], "")
    row = 1
    for each in maps:
        row += 1
        yield Cell(row, 0, f"{each.name}:", "")
        for line in each.lines:
            row, column = row + 1, 2
            for token in line.tokens:
                text = plain(token.text)[: COLUMNS - 2]
                if column + len(text) > COLUMNS:
                    row, column = row + 1, 2
                yield Cell(row, column, text, token.level)
                column += len(text)
            yield Cell(row + 1, 4, f"{line.mean} nats per token  {plain(line.verdict)}", "")
            row += 1
        row += 1
