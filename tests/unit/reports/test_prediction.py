import math
from dataclasses import replace

import polars as pl
import pytest

from sdcore.analysis.prediction import by_verdict, correlations, harm_thresholds
from sdcore.config import EvaluationConfig
from sdcore.reports.prediction import Prediction, as_dict, figure, printable

ROWS = [
    ("a", "all", "localised", 0.9, 0.06), ("b", "all", "diffuse", 0.7, 0.01),
    ("c", "all", "no signal", 0.5, -0.02), ("a", "until_error", "localised", 0.9, 0.08),
]  # fmt: skip


@pytest.fixture(scope="module")
def found():
    rows = [
        {
            "condition": f"{context} {mask}", "context": context, "tokens": mask,
            "verdict": word, "error_auc": auc, "copied": None, "training_gain": gain,
            "low": gain - 0.01, "high": gain + 0.01, "covers": "problems and seeds", "seeds": 5,
        }
        for context, mask, word, auc, gain in ROWS
    ]  # fmt: skip
    conditions = pl.DataFrame(rows, schema_overrides={"copied": pl.Float64})
    return Prediction(
        conditions, correlations(conditions, EvaluationConfig(resamples=200)),
        by_verdict(conditions), harm_thresholds(conditions),
    )  # fmt: skip


def test_the_tables_say_what_the_intervals_cover(found):
    (first, correlated), (second, gains), (_, verdicts) = printable(found)
    assert "(intervals: contexts, for this model" in first
    assert "seeds: 5 (intervals: problems and seeds)" in second
    assert gains["condition"].to_list()[0] == "a until_error"
    assert gains["gain"].to_list()[0] == "+8.0 (+7.0 to +9.0)"
    assert verdicts.row(0) == ("localised", 2, "+7.0", "+6.0", "+8.0")
    known = correlated.filter(measure="error_auc", among="all")
    assert known["rank correlation"][0] == "+1.00 (interval unknown)"  # three contexts
    # no condition has a copy rate
    assert set(correlated.filter(measure="copied")["rank correlation"]) == {"unknown"}


def test_rows_of_unequal_seeds_are_all_said(found):
    fewer = {"seeds": 1, "covers": "problems, within this seed only"}
    lost = pl.col("condition") == "c all"
    changed = found.conditions.with_columns(
        pl.when(lost).then(pl.lit(value)).otherwise(name).alias(name)
        for name, value in fewer.items()
    )
    _, (title, _), *_ = printable(replace(found, conditions=changed))
    assert title.endswith(
        "seeds: 1 or 5 (intervals: problems and seeds / problems, within this seed only)"
    )


def test_the_figure_has_a_panel_per_measure_that_is_there(found):
    (panel,) = figure(found).axes
    # ranks of AUC 3.5, 2, 1, 3.5 and of gains 3, 2, 1, 4: 4.5 / sqrt(4.5 x 5)
    assert panel.get_title(loc="left") == "AUC, error, ρ = +0.95"
    assert [line.get_label() for line in panel.containers] == ["all", "until_error"]
    assert panel.containers[0][0].get_ydata().tolist() == pytest.approx([6, 1, -2])


def test_unknown_numbers_are_none_in_json(found):
    rows = as_dict(found)["correlations"]
    assert {row["rho"] for row in rows if row["measure"] == "copied"} == {None}
    assert not any(isinstance(row["rho"], float) and math.isnan(row["rho"]) for row in rows)
