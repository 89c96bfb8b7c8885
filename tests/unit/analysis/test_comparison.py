import math

import polars as pl
import pytest

from sdcore.analysis import comparison
from sdcore.analysis.intervals import TWO_SEEDS
from sdcore.errors import DataError
from sdcore.reports import printing
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, fill, rollout, run_row, update


def score_row(condition, seed, round_, split, avg, tokens):
    return {
        "condition": condition, "seed": seed, "round": round_, "split": split,
        "avg_at_k": avg, "sampled_tokens": tokens,
    }  # fmt: skip


SCORES = pl.DataFrame(
    [
        score_row("a", 0, 1, "test", 0.2, 100),
        score_row("a", 0, 3, "test", 0.9, 300),
        score_row("a", 1, 3, "test", 0.1, 300),
        score_row("a", 1, 1, "test", 0.2, 100),
    ]
)


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
    rows, by_seed = comparison.comparisons(store, EXPERIMENT.experiment_id)
    pairs = rows.select("condition", "baseline").unique().sort("condition", "baseline").rows()
    assert pairs == [
        ("grpo", "base"), ("reference", "base"), ("reference", "grpo"),
        ("step_aligned", "base"), ("step_aligned", "grpo"), ("step_aligned", "reference"),
    ]  # fmt: skip
    assert (rows["low"] <= rows["difference"]).all() and (rows["difference"] <= rows["high"]).all()
    assert set(rows["covers"]) == {TWO_SEEDS} and set(rows["seeds"]) == {2}
    assert len(by_seed) == 2 * len(rows)  # two seeds


def test_each_seed_has_its_own_difference_and_their_mean_is_the_comparison(store):
    rows, by_seed = comparison.comparisons(store, EXPERIMENT.experiment_id)
    keys = ["condition", "baseline", "metric", "budget"]
    means = by_seed.group_by(keys).agg(pl.col("difference").mean().alias("mean"))
    both = rows.join(means, on=keys)
    assert both["difference"].to_list() == pytest.approx(both["mean"].to_list())
    own = by_seed.filter(condition="step_aligned", baseline="base", metric="avg_at_k", seed=1)
    assert own.select("budget", "round", "baseline_round").rows() == [
        ("epochs", 4, 0), ("tokens", 4, 0),
    ]  # fmt: skip


def test_differences_are_paired_by_problem(store):
    """Test accuracy by problem: base 1/2, 1/2, 0; reference 1/2, 1/2, 1/2; step-aligned 1, 1, 1/2.

    Step-aligned is 1/2 better on each. Of other problems a share of 1 - 0.025^(1/3) = 0.7076 may
    differ from that, by 3/2 down or by 1/2 up.
    Against the reference it is better by 1/2, 1/2, 0, in both seeds alike: standard error 1/6,
    t(2) = 4.30265.
    """
    rows = comparison.comparisons(store, EXPERIMENT.experiment_id)[0].filter(
        condition="step_aligned", metric="avg_at_k", budget="epochs"
    )
    found = {
        row["baseline"]: (row["difference"], row["low"], row["high"]) for row in rows.to_dicts()
    }
    bounds = 0.5 - 0.7076 * 1.5, 0.5 + 0.7076 * 0.5
    assert found["base"] == pytest.approx((0.5, *bounds), abs=1e-4)
    half = 4.30265 / 6
    assert found["reference"] == pytest.approx((1 / 3, 1 / 3 - half, 1), rel=1e-5)


def test_with_one_seed_every_interval_says_so(tmp_path):
    store = fill(Store(tmp_path / "sdcore.duckdb"), idle=[(n, 1) for n in EXPERIMENT.conditions])
    rows = store.rows("comparisons")
    assert set(rows["covers"]) == {"problems, within this seed only"} and set(rows["seeds"]) == {1}
    summary = comparison.summary(store, EXPERIMENT.experiment_id)
    covers = summary.filter(pl.col("condition") != "base")["covers"]
    assert set(covers) == {"problems, within this seed only"}
    titles = [title for title, _ in printing.printable(**printed_tables(store))]
    assert sum("within this seed only" in title for title in titles) == 3


def test_a_condition_that_trained_nothing_is_named_and_never_compared(tmp_path):
    """Its scores are there, as of the checkpoints that a run saves after every round."""
    idle = [("reference", 0), ("reference", 1), ("grpo", 0)]
    store = fill(Store(tmp_path / "sdcore.duckdb"), idle=idle)
    rows = store.rows("comparisons")
    assert "reference" not in {*rows["condition"], *rows["baseline"]}
    assert set(rows.filter(condition="grpo")["seeds"]) == {1}
    assert set(rows.filter(condition="step_aligned", baseline="base")["seeds"]) == {2}
    summary = comparison.summary(store, EXPERIMENT.experiment_id)
    reference = summary.filter(condition="reference", checkpoint="validation").row(0, named=True)
    assert summary.filter(condition="reference")["note"].to_list() == ["trained nothing"] * 2
    assert reference["gain"] is None and reference["avg_at_k"] is None
    grpo = summary.filter(condition="grpo", checkpoint="validation").row(0, named=True)
    assert grpo["note"] == "seed 0 trained nothing" and grpo["seeds"] == 1
    assert comparison.warnings(store, EXPERIMENT.experiment_id).rows() == [
        ("grpo", "seed 0 trained nothing: left out of every mean"),
        ("grpo", "4 of 8 rounds trained nothing"),
        ("reference", "trained nothing: no update in 8 rounds; not compared"),
    ]
    assert "reference" not in set(comparison.curves(store, EXPERIMENT.experiment_id)["condition"])
    (title, warned), *_ = printing.printable(**printed_tables(store))
    assert title == "WARNING" and len(warned) == 3


def test_no_warning_where_all_trained(store):
    assert not len(comparison.warnings(store, EXPERIMENT.experiment_id))


def test_what_was_stopped_or_shows_a_sign_of_a_collapse_is_named(tmp_path):
    """Seed 0 of step-aligned was good until round 2, seed 1 never; GRPO's entropy is a tenth."""
    store = fill(Store(tmp_path / "sdcore.duckdb"))
    name = EXPERIMENT.experiment_id
    stop = {"experiment_id": name, "round": 3, "sign": "format", "reason": "40% well-formed"}
    store.append_missing(
        stops=TABLES["stops"].frame(
            [
                stop | {"condition": condition, "seed": seed, "good_round": good}
                for condition, seed, good in (
                    ("step_aligned", 0, 2), ("step_aligned", 1, 0), ("reference", 0, 0),
                    ("reference", 1, 0),
                )
            ]
        )
    )  # fmt: skip
    updates = [update("grpo", 0, 3, entropy=0.1)]
    rollouts = [rollout("grpo", 0, "train", 2, "train0", 0, correct=True)]
    updates.append(update("grpo", 0, 2, entropy=0.1))
    store.replace(updates=TABLES["updates"].frame(updates))
    store.append_missing(rollouts=TABLES["rollouts"].frame(rollouts))
    ended = "stopped after round 3: 40% well-formed;"
    never = "not compared, for want of a good checkpoint"
    assert set(comparison.warnings(store, name).rows()) == {
        ("grpo", "seed 0, rounds 2 to 3: entropy of 0.1 nats per token, 1 in the first round"),
        ("reference", f"seed 0 {ended} {never}"),
        ("reference", f"seed 1 {ended} {never}"),
        ("step_aligned", f"seed 0 {ended} compared up to the policy after 2 rounds"),
        ("step_aligned", f"seed 1 {ended} {never}"),
    }
    chosen = comparison.summary(store, name).filter(checkpoint="validation")
    aligned = chosen.filter(condition="step_aligned").row(0, named=True)
    assert (aligned["rounds"], aligned["seeds"]) == ("2", 1)
    assert aligned["avg_at_k"] == pytest.approx(4 / 6)
    assert aligned["note"] == (
        "seed 0 stopped after round 3; seed 1 stopped after round 3 without a good checkpoint"
    )
    reference = comparison.summary(store, name).filter(condition="reference")
    assert reference["checkpoint"].to_list() == ["validation", "optimistic"]
    assert reference["avg_at_k"].to_list() == [None] * 2
    assert [note.count("without a good") for note in reference["note"]] == [2, 2]
    rows, _ = comparison.comparisons(store, name)
    assert "reference" not in {*rows["condition"], *rows["baseline"]}
    assert set(rows.filter(condition="step_aligned")["seeds"]) == {1}


def test_the_optimistic_round_is_one_that_all_seeds_have():
    # Seed 0 was stopped and scored after round 2, better than anything else.
    early = pl.DataFrame([score_row("a", 0, 2, "test", 1.0, 200)])
    rounds = comparison.best_test_rounds(pl.concat([SCORES, early]), "a", "avg_at_k")
    assert rounds.rows() == [("a", 0, 3), ("a", 1, 3)]


def test_a_schedule_cut_off_by_the_budget_is_said_beside_the_number(tmp_path):
    """GRPO samples eight times as much: its round 2 is in the budget, its schedule has 4."""
    store = fill(Store(tmp_path / "sdcore.duckdb"))
    scores = store.rows("scores")
    dear = pl.when(pl.col("condition") == "grpo").then(2).otherwise(1)
    store.replace(scores=scores.with_columns(sampled_tokens=pl.col("sampled_tokens") * dear))
    rows, _ = comparison.comparisons(store, EXPERIMENT.experiment_id)
    caveats = rows.filter(budget="tokens", metric="avg_at_k").select(
        "condition", "baseline", "caveat"
    )
    for condition, baseline, caveat in caveats.iter_rows():
        if "grpo" in (condition, baseline):
            assert caveat.startswith("grpo at round 2 of 4: in the middle of its schedule")
        else:
            assert caveat is None
    assert rows.filter(budget="epochs")["caveat"].null_count() == len(rows) // 2
    store.replace(comparisons=rows)
    parts = dict(printing.printable(**printed_tables(store)))
    (tokens,) = [frame for title, frame in parts.items() if "equal sampled tokens" in title]
    assert tokens.filter(pair="grpo − base")["note"][0].startswith("grpo at round 2 of 4")


def test_a_schedule_that_seeds_cut_off_differently_names_the_round_of_each(tmp_path):
    """GRPO's seed 0 samples twice as much: its round 2 is in the budget; seed 1 has round 4."""
    store = fill(Store(tmp_path / "sdcore.duckdb"))
    grpo, seed = pl.col("condition") == "grpo", pl.col("seed")
    last = grpo & (seed == 1) & (pl.col("round") == 4)
    changed = store.rows("scores").with_columns(
        sampled_tokens=pl.col("sampled_tokens") * pl.when(grpo & (seed == 0)).then(2).otherwise(1),
        avg_at_k=pl.when(last).then(1.0).otherwise("avg_at_k"),
    )
    store.replace(scores=changed)
    rows, _ = comparison.comparisons(store, EXPERIMENT.experiment_id)
    caveat = rows.filter(condition="grpo", baseline="base", budget="tokens")["caveat"][0]
    assert caveat.startswith("grpo at round 2/4 of 4")


def test_a_curve_has_the_interval_over_its_seeds(store):
    rows = comparison.curves(store, EXPERIMENT.experiment_id)
    last = rows.filter(condition="step_aligned", round=4).row(0, named=True)
    assert last["value"] == pytest.approx(5 / 6) and last["seeds"] == 2
    assert last["covers"] == TWO_SEEDS
    assert rows.filter(condition="base")["covers"].to_list() == ["problems"]


def test_a_curve_has_the_same_seeds_all_along(tmp_path):
    """Seed 1 was stopped after its policy of two rounds: the line of both seeds ends there."""
    store = fill(Store(tmp_path / "sdcore.duckdb"))
    stop = {"condition": "grpo", "seed": 1, "round": 3, "good_round": 2, "sign": "format"}
    stop |= {"experiment_id": EXPERIMENT.experiment_id, "reason": "40%"}
    store.append_missing(stops=TABLES["stops"].frame([stop]))
    rows = comparison.curves(store, EXPERIMENT.experiment_id)
    assert rows.filter(condition="grpo").select("round", "seeds").rows() == [(2, 2)]
    assert rows.filter(condition="reference")["round"].to_list() == [2, 4]


def test_rounds_of_different_seeds_are_not_mixed():
    apart = SCORES.filter(~((pl.col("seed") == 0) & (pl.col("round") == 3)))
    apart = apart.filter(~((pl.col("seed") == 1) & (pl.col("round") == 1)))
    assert comparison.of_all_seeds(apart)["round"].to_list() == [3]  # as many seeds, and later


def test_signals_are_told_apart_by_region(store):
    # The example gives every token of a region the same advantage.
    rows = comparison.signal_summary(store, EXPERIMENT.experiment_id)
    row = rows.filter(condition="step_aligned", round=0).row(0, named=True)
    assert row["mean_before"] == pytest.approx(0.15)
    assert row["mean_at"] == pytest.approx(-2.3)


def test_an_unknown_experiment_is_named(store):
    with pytest.raises(DataError, match="sdcore list"):
        comparison.summary(store, "nothing")


def printed_tables(store):
    name = EXPERIMENT.experiment_id
    return {
        "summary": comparison.summary(store, name),
        "comparisons": store.rows("comparisons", experiment_id=name),
        "seed_differences": store.rows("seed_differences", experiment_id=name),
        "signals": comparison.signal_summary(store, name),
        "warnings": comparison.warnings(store, name),
        "trials": store.rows("trials", experiment_id=name),
    }


def test_a_table_without_rows_is_not_printed(store):
    whole = printed_tables(store)
    empty = whole | {"signals": whole["signals"].clear()}
    titles = [title for title, _ in printing.printable(**whole)]
    assert [title for title, _ in printing.printable(**empty)] == titles[:-1]
    assert titles[-1].startswith("mean advantage by region")


def test_the_printed_tables_show_per_cent_points_and_each_seed(store):
    parts = dict(printing.printable(**printed_tables(store)))
    title = "checkpoint chosen on validation, scored once on test"
    chosen = parts[f"{title}; intervals cover {TWO_SEEDS}"]
    assert chosen["avg@2"][0].startswith("33.3 (")
    assert chosen.filter(condition="reference")["gain"][0].startswith("+16.7 (")
    (pairs,) = [frame for title, frame in parts.items() if "equal epochs" in title]
    (pair,) = pairs.filter(pair="step_aligned − reference").to_dicts()
    assert pair["by seed"] == "0: +33.3, 1: +33.3"
    text = printing.markdown(chosen)
    assert text.splitlines()[1] == "| " + " | ".join(["---"] * chosen.width) + " |"


def test_a_value_without_an_interval_is_printed_alone(store):
    tables = printed_tables(store)
    tables["signals"] = tables["signals"].with_columns(  # as of a single problem
        low_before=pl.lit(math.nan), high_before=pl.lit(math.nan)
    )
    *_, (_, printed) = printing.printable(**tables)
    cells = printed.filter(condition="step_aligned", round="0").row(0, named=True)
    assert cells["before first error"] == "+0.150"


def test_what_rounds_to_zero_has_no_minus_sign(store):
    tables = printed_tables(store)
    for name in ("comparisons", "seed_differences"):
        tables[name] = tables[name].with_columns(difference=pl.lit(-0.0004))
    parts = dict(printing.printable(**tables))
    (pairs,) = [frame for title, frame in parts.items() if "equal epochs" in title]
    (pair,) = pairs.filter(pair="step_aligned − reference").to_dicts()
    assert pair["difference"].startswith("+0.0 (") and pair["by seed"] == "0: +0.0, 1: +0.0"


def test_the_optimistic_table_is_left_out_where_it_says_the_same(store):
    """As where a single checkpoint is scored."""
    summary = printed_tables(store)["summary"]
    assert printing.checkpoint_choices(summary) == ["validation", "optimistic"]
    chosen = summary.filter(pl.col("checkpoint") != "optimistic")
    twice = chosen.filter(checkpoint="validation").with_columns(checkpoint=pl.lit("optimistic"))
    assert printing.checkpoint_choices(pl.concat([chosen, twice])) == ["validation"]


def test_two_budgets_with_the_same_differences_are_one_table(store):
    tables = printed_tables(store)
    (title,) = [title for title, _ in printing.printable(**tables) if "difference" in title]
    assert "at equal epochs and equal sampled tokens, points" in title
    of_tokens = pl.when(budget="tokens").then(0.5).otherwise("difference")
    tables["comparisons"] = tables["comparisons"].with_columns(difference=of_tokens)
    titles = [title for title, _ in printing.printable(**tables) if "difference" in title]
    assert ["at equal epochs," in titles[0], "at equal sampled tokens," in titles[1]] == [True] * 2


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same run once more under another name, with perfect scores and soon stopped."""
    store = fill(Store(tmp_path_factory.mktemp("both") / "sdcore.duckdb"))
    copies = {}
    for name in TABLES:
        rows = store.rows(name)
        text = rows.select(pl.col(pl.String)).columns
        ids = [column for column in text if column.endswith("_id")]
        copies[name] = rows.with_columns(pl.col(ids) + " of another")
    copies["scores"] = copies["scores"].with_columns(avg_at_k=pl.lit(1.0))
    run = {"experiment_id": f"{EXPERIMENT.experiment_id} of another", "seed": 0, "round": 1}
    copies["stops"] = TABLES["stops"].frame(
        [run | {"condition": name, "sign": "format", "reason": "none", "good_round": 0}
         for name in EXPERIMENT.conditions]
    )  # fmt: skip
    store.append_missing(**copies)
    return store


@pytest.mark.parametrize(
    "part",
    [comparison.summary, comparison.curves, comparison.signal_summary, comparison.warnings,
     lambda store, run: comparison.comparisons(store, run)[0]],
)  # fmt: skip
def test_another_run_in_the_workspace_changes_nothing(store, both, part):
    alone = part(store, EXPERIMENT.experiment_id)
    assert part(both, EXPERIMENT.experiment_id).equals(alone)


def test_a_run_without_scores_has_curves_without_rows(tmp_path):
    store = Store(tmp_path / "sdcore.duckdb")
    store.append_missing(experiments=TABLES["experiments"].frame([run_row()]))
    curves = comparison.curves(store, EXPERIMENT.experiment_id)
    assert not len(curves) and {"condition", "round", "value", "low"} <= set(curves.columns)
