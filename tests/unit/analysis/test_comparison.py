import math

import polars as pl
import pytest

from sdcore.analysis import comparison
from sdcore.errors import DataError
from sdcore.reports import printing
from sdcore.store.database import Store
from tests.helpers.example import EXPERIMENT, fill


def score_row(condition, seed, round_, split, avg, tokens):
    return {
        "condition": condition, "seed": seed, "round": round_, "split": split,
        "avg_at_k": avg, "sampled_tokens": tokens,
    }  # fmt: skip


SCORES = pl.DataFrame(
    [
        score_row("base", 0, 0, "validation", 0.9, 0),
        score_row("a", 0, 1, "validation", 0.5, 100),
        score_row("a", 0, 2, "validation", 0.5, 200),
        score_row("a", 0, 3, "validation", 0.4, 300),
        score_row("b", 0, 1, "validation", 0.1, 290),
        score_row("b", 0, 2, "validation", 0.8, 2000),
        score_row("a", 0, 1, "test", 0.2, 100),
        score_row("a", 0, 3, "test", 0.9, 300),
        score_row("a", 1, 3, "test", 0.1, 300),
        score_row("a", 1, 1, "test", 0.2, 100),
    ]
)


def test_the_checkpoint_is_best_on_validation_and_the_earliest_of_equals():
    # Test scores and the base do not count: a is best at rounds 1 and 2, b at round 2.
    assert comparison.chosen_rounds(SCORES).rows() == [("a", 0, 1), ("b", 0, 2)]


def test_at_equal_tokens_only_checkpoints_within_the_budget_compete():
    # The cheapest condition, a, samples 300 tokens in all: 300 * 1.1 = 330 are allowed.
    budget = comparison.token_budget(SCORES)
    assert budget == pytest.approx(330)
    assert comparison.chosen_rounds(SCORES, budget).rows() == [("a", 0, 1), ("b", 0, 1)]


def test_the_optimistic_round_is_best_on_test_averaged_over_seeds():
    # Round 1: (0.2 + 0.2) / 2 = 0.2; round 3: (0.9 + 0.1) / 2 = 0.5.
    rounds = comparison.best_test_rounds(SCORES, "a", "avg_at_k")
    assert rounds.rows() == [("a", 0, 3), ("a", 1, 3)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    filled = Store(tmp_path_factory.mktemp("filled") / "sdcore.duckdb")
    fill(filled)
    return filled


def test_the_summary_averages_over_seeds_and_subtracts_the_base(store):
    # Of 6 samples the base has 2 right; the example's validation scores choose the rounds whose
    # test samples are 3 of 6 (reference, both rounds) right.
    rows = comparison.summary(store, EXPERIMENT.experiment_id)
    base = rows.row(by_predicate=pl.col("condition") == "base", named=True)
    assert base["avg_at_k"] == pytest.approx(2 / 6) and base["gain"] is None
    reference = rows.filter(condition="reference", checkpoint="validation").row(0, named=True)
    assert reference["avg_at_k"] == pytest.approx(3 / 6)
    assert reference["gain"] == pytest.approx(1 / 6)
    assert reference["gain_low"] <= 1 / 6 <= reference["gain_high"]
    assert reference["seeds"] == 2 and reference["problems"] == 3


def test_every_pair_is_compared_at_both_budgets(store):
    rows = comparison.comparisons(store, EXPERIMENT.experiment_id)
    pairs = rows.select("condition", "baseline").unique().sort("condition", "baseline").rows()
    assert pairs == [
        ("grpo", "base"), ("reference", "base"), ("reference", "grpo"),
        ("step_aligned", "base"), ("step_aligned", "grpo"), ("step_aligned", "reference"),
    ]  # fmt: skip
    assert (rows["low"] <= rows["difference"]).all() and (rows["difference"] <= rows["high"]).all()


def test_differences_are_paired_by_problem(store):
    """Test accuracy by problem: base 1/2, 1/2, 0; reference 1/2, 1/2, 1/2; step-aligned 1, 1, 1/2.

    Step-aligned is 1/2 better on each, so that its interval has no width, though both spread.
    Against the reference it is better by 1/2, 1/2, 0: the chance of a mean of 0 in a resample is
    1/27 and that of 1/2 is 8/27, both above the 2.5 % that the interval leaves out.
    """
    rows = comparison.comparisons(store, EXPERIMENT.experiment_id).filter(
        condition="step_aligned", metric="avg_at_k", budget="epochs"
    )
    found = {
        row["baseline"]: (row["difference"], row["low"], row["high"]) for row in rows.to_dicts()
    }
    assert found["base"] == (0.5, 0.5, 0.5)
    assert found["reference"] == pytest.approx((1 / 3, 0, 0.5))


def test_signals_are_told_apart_by_region(store):
    # The example gives every token of a region the same advantage.
    rows = comparison.signal_summary(store, EXPERIMENT.experiment_id)
    row = rows.filter(condition="step_aligned", round=0).row(0, named=True)
    assert row["mean_before"] == pytest.approx(0.15)
    assert row["mean_at"] == pytest.approx(-2.3)


def test_an_unknown_experiment_is_named(store):
    with pytest.raises(DataError, match="sdcore list"):
        comparison.summary(store, "nothing")


def test_the_printed_tables_show_per_cent_and_points(store):
    name = EXPERIMENT.experiment_id
    parts = dict(
        printing.printable(
            comparison.summary(store, name),
            store.rows("comparisons", experiment_id=name),
            comparison.signal_summary(store, name),
        )
    )
    chosen = parts["checkpoint chosen on validation, scored once on test"]
    assert chosen["Avg@2"][0].startswith("33.3 (")
    assert chosen.filter(condition="reference")["gain"][0].startswith("+16.7 (")
    text = printing.markdown(chosen)
    assert text.splitlines()[1] == "| " + " | ".join(["---"] * chosen.width) + " |"


def test_a_value_without_an_interval_is_printed_alone(store):
    name = EXPERIMENT.experiment_id
    single = comparison.signal_summary(store, name).with_columns(  # as of a single rollout
        low_before=pl.lit(math.nan), high_before=pl.lit(math.nan)
    )
    *_, (_, printed) = printing.printable(
        comparison.summary(store, name), store.rows("comparisons", experiment_id=name), single
    )
    cells = printed.filter(condition="step_aligned", round="0").row(0, named=True)
    assert cells["before first error"] == "+0.150"
    assert cells["at first error"] == "-2.300 (-2.300 to -2.300)"
