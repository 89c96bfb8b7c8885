import math

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from sdcore.analysis.prediction import by_verdict, correlations, harm_thresholds, rank_correlation
from sdcore.config import EvaluationConfig

SETTINGS = EvaluationConfig(resamples=500)


def conditions(*rows: tuple[str, str, float, float]):
    """Rows of context, mask, error_auc and training gain."""
    columns = ["context", "tokens", "error_auc", "training_gain"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_one_swap_among_four_gives_a_correlation_of_point_eight():
    correlate = rank_correlation(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 40]))
    # Spearman's formula: 1 - 6 (1 + 1) / (4 (16 - 1))
    assert correlate(np.ones((1, 4)))[0, 0] == pytest.approx(0.8)


def test_draws_count_as_if_the_pairs_stood_there_so_often():
    rng = np.random.default_rng(3)
    x_N, y_N = rng.integers(5, size=9).astype(float), rng.normal(size=9)  # with ties
    n_RN = rng.integers(4, size=(20, 9)).astype(float)
    found_R = rank_correlation(x_N, y_N)(n_RN)[:, 0]
    for n_N, found in zip(n_RN.astype(int), found_R, strict=True):
        assert found == pytest.approx(spearmanr(np.repeat(x_N, n_N), np.repeat(y_N, n_N))[0])


def test_no_correlation_where_one_side_is_constant():
    correlate = rank_correlation(np.array([0.1, 0.1, 0.7]), np.array([1.0, 2.0, 3.0]))
    assert math.isnan(correlate(np.array([[2.0, 1.0, 0.0]]))[0, 0])


def test_correlations_over_all_conditions_and_within_each_mask():
    rows = [("a", 0.5, 1.0), ("b", 0.6, 2.0), ("c", 0.9, 3.0)]
    rising = [(name, "all", auc, gain) for name, auc, gain in rows]
    falling = [(name, "error", auc, 0 - gain) for name, auc, gain in rows]
    found = correlations(conditions(*rising, *falling), SETTINGS)
    assert found["measure"].unique().to_list() == ["error_auc"]
    assert dict(found.select("among", "rho").iter_rows()) == pytest.approx(
        # gains in order of AUC: 1, -1, 2, -2, 3, -3; their ranks 4, 3, 5, 2, 6, 1 against 1.5, 1.5,
        # 3.5, 3.5, 5.5, 5.5: the products of the deviations cancel
        {"every mask": 0.0, "all": 1.0, "error": -1.0}
    )
    assert found["conditions"].to_list() == [6, 3, 3]
    assert found["contexts"].to_list() == [3, 3, 3]
    assert found["low"].is_nan().all()  # too few contexts for an interval


def test_masks_of_a_context_are_drawn_together():
    # Two masks with nearly the same gains add nothing: the interval is that of one mask.
    gains = [3.0, 1.0, 2.0, 5.0, 4.0, 6.0]
    one = [(str(i), "all", float(i), gain) for i, gain in enumerate(gains)]
    both = one + [(str(i), "error", float(i), gain) for i, gain in enumerate(gains)]
    found = correlations(conditions(*both), SETTINGS).rows_by_key("among", named=True, unique=True)
    every, alone = found["every mask"], found["all"]
    assert [every[end] for end in ("rho", "low", "high")] == pytest.approx(
        [alone[end] for end in ("rho", "low", "high")]
    )
    assert alone["low"] < alone["rho"] < alone["high"]


def test_two_conditions_or_a_missing_measure_show_nothing():
    found = correlations(
        conditions(("a", "all", 0.5, 1.0), ("b", "all", 0.7, 2.0), ("c", "all", math.nan, 3.0)),
        SETTINGS,
    )
    assert found["conditions"].to_list() == [2]
    assert math.isnan(found["rho"][0])


def test_gains_by_verdict():
    frame = pl.DataFrame(
        {"verdict": ["localised", "diffuse", "localised"], "training_gain": [0.06, -0.01, 0.02]}
    )
    assert by_verdict(frame).rows() == [
        ("localised", 2, pytest.approx(0.04), 0.02, 0.06),
        ("diffuse", 1, pytest.approx(-0.01), -0.01, -0.01),
    ]


def test_a_threshold_is_judged_on_contexts_that_had_no_part_in_it():
    """AUC .5 and .6 do harm, .8 and .9 do not: the cut is between .6 and .8, without errors.

    Without .6 it is at .65 and without .8 at .75, which judge both rightly. At the error 0 and -1
    do harm, -4 and -5 do not: the cut is between -1 and -4. Without -1 it is at -2, without -4 at
    -3, so that both are judged rightly too. With b and c swapped, no cut is without an error.
    """
    rows = {"a": (0.5, 0.0, -0.2), "b": (0.6, -1.0, -0.1), "c": (0.8, -4.0, 0.1), "d": (0.9, -5, 1)}
    frame = pl.DataFrame(
        [
            {"context": name, "error_auc": auc, "error": error, "copied": None, "high": high}
            for name, (auc, error, end) in rows.items()
            for high in (end, 0.3)  # under the other mask none does harm
        ]
    )
    auc, error = harm_thresholds(frame).iter_rows(named=True)
    assert (auc["measure"], auc["harm"], auc["start"], auc["end"]) == (
        "error_auc",
        "below",
        0.6,
        0.8,
    )
    assert (auc["harmful"], auc["contexts"], auc["errors"], auc["errors_left_out"]) == (2, 4, 0, 0)
    assert (error["harm"], error["start"], error["end"], error["errors"]) == ("above", -4, -1, 0)
    assert error["errors_left_out"] == 0
    swapped = frame.with_columns(
        high=pl.when(context=pl.lit("b")).then(0.1).when(context=pl.lit("c")).then(-0.1)
        .otherwise("high")
    )  # fmt: skip
    assert harm_thresholds(swapped)["errors"].to_list() == [1, 1]
    assert harm_thresholds(frame.with_columns(high=0.1)).is_empty()
