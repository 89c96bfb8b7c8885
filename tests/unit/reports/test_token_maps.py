"""Where the tokens of a trace are drawn."""

from sdcore.reports.heatmaps import Heatmap, Line, Token
from sdcore.reports.plots import png
from sdcore.reports.token_maps import COLUMNS, cells, token_map


def heatmap(*lines):
    made = [
        Line("at", "✗ first wrong step", "−0.50", tuple(Token(t, level, "") for t, level in tokens))
        for tokens in lines
    ]
    return Heatmap("step_aligned", "a context", tuple(made))


def test_tokens_follow_each_other_and_keep_their_colour():
    found = list(cells([heatmap([("12", ""), (" + 3", "n2")])], "What is 12 + 4?"))
    # title on row 0, the condition on row 2, its tokens on row 3 from column 2, the mean below
    assert found == [
        (0, 0, "What is 12 + 4?", ""),
        (2, 0, "step_aligned:", ""),
        (3, 2, "12", ""),
        (3, 4, " + 3", "n2"),
        (4, 4, "−0.50 nats per token  ✗ first wrong step", ""),
    ]


def test_a_token_that_does_not_fit_starts_a_row():
    long = "x" * (COLUMNS - 5)  # from column 2 it ends 3 before the edge
    placed = list(cells([heatmap([(long, ""), ("abc", ""), ("d", "")])], ""))[2:5]
    assert [(row, column) for row, column, *_ in placed] == [(3, 2), (3, COLUMNS - 3), (4, 2)]


def test_no_text_goes_beyond_the_edge():
    for cell in cells([heatmap([("y" * 500, "p1")])], "q" * 500):
        assert cell.column + len(cell.text) <= COLUMNS


def test_what_the_font_lacks_is_a_dot_and_markup_is_text():
    figure = token_map([heatmap([("汉\n$x_", "p5"), ("</step_1>", "n5")])], "$\\frac$ <b>")
    assert png(figure).startswith(b"\x89PNG")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == "$\\frac$ <b>" and texts[2] == "··$x_"
