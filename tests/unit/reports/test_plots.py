import io

import polars as pl
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from sdcore.reports.plots import COLOURS, _looks, advantage_bars, colours, learning_curves, png, svg

CONDITIONS = ["grpo", "reference"]


def point(condition, round_, accuracy):
    return {
        "condition": condition, "round": round_, "k": 12, "value": accuracy,
        "low": accuracy - 0.1, "high": accuracy + 0.1, "sampled_tokens": 1000 * round_,
    }  # fmt: skip


POINTS = pl.DataFrame([point("base", 0, 0.2), point("grpo", 10, 0.4), point("reference", 10, 0.6)])
SIGNALS = pl.DataFrame(
    [
        {"condition": condition, "moment": moment, "region": region, "mean": mean,
         "low": mean - 0.1, "high": mean + 0.1}
        for condition in CONDITIONS
        for moment, scale in (("first", 1.0), ("last", 0.5))
        for region, mean in (("before", 0.1 * scale), ("at", -2.0 * scale))
    ]
)  # fmt: skip


def lines(panel):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines
    }


def test_a_curve_starts_at_the_base():
    by_round, by_tokens = learning_curves(POINTS, CONDITIONS).axes
    assert lines(by_round)["grpo"] == ([0, 10], [0.2, pytest.approx(0.4)])
    assert lines(by_tokens)["reference"] == ([0, 10_000], [0.2, pytest.approx(0.6)])
    assert lines(by_round)["base"][1] == [0.2, 0.2]


def test_a_condition_has_one_colour_everywhere():
    assert colours(CONDITIONS) == {"grpo": COLOURS[0], "reference": COLOURS[1]}
    (panel,) = learning_curves(POINTS, CONDITIONS, ["round"]).axes
    assert [line.get_color() for line in panel.lines[:2]] == list(COLOURS[:2])
    (bars,) = advantage_bars(SIGNALS, CONDITIONS, ["first"]).axes
    drawn = {patch.get_facecolor() for patch in bars.patches}
    assert drawn == {to_rgba(colour) for colour in COLOURS[:2]}


def test_no_two_of_many_conditions_look_alike():
    looks = [(colour, marker) for _, colour, marker in _looks([f"c{i}" for i in range(100)])]
    assert len(set(looks)) == 100
    assert len({marker for _, marker in looks[:12]}) == 12  # for those who see no colours


def test_bars_of_both_rounds_share_the_scale():
    first = advantage_bars(SIGNALS, CONDITIONS, ["first"]).axes[0]
    last = advantage_bars(SIGNALS, CONDITIONS, ["last"]).axes[0]
    assert first.get_ylim() == last.get_ylim()
    heights = [patch.get_height() for patch in last.patches]
    assert heights == pytest.approx([0.05, -1.0, 0.05, -1.0])


def test_svg_is_one_element_with_a_label_and_the_same_every_time():
    drawn = [svg(learning_curves(POINTS, CONDITIONS, ["round"]), "Curves") for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith('<svg role="img" aria-label="Curves"')
    assert "currentColor" in drawn[0] and "<?xml" not in drawn[0]
    assert svg(learning_curves(POINTS, CONDITIONS, ["round"]), "Others") != drawn[0]


def test_png_is_wide_enough_for_a_page():
    image = Image.open(io.BytesIO(png(learning_curves(POINTS, CONDITIONS))))
    assert image.format == "PNG" and image.width >= 1600
