import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from sdcore.analysis.signal_stats import correct_rollouts, error_auc, region_advantages
from sdcore.config import EvaluationConfig

pytestmark = pytest.mark.usefixtures("two_are_enough")
SETTINGS = EvaluationConfig(resamples=1000)


def tokens(rollout: str, correct: bool, *pairs: tuple[str, float], **columns: object):
    """Token rows of one rollout from pairs of region and advantage."""
    rows = [{"region": region, "advantage": float(advantage)} for region, advantage in pairs]
    constants = {"rollout_id": rollout, "problem_id": rollout, "correct": correct}
    constants |= {"condition": "c"} | columns
    return pl.DataFrame([row | constants for row in rows])


WRONG = pl.concat(
    [
        tokens("a", False, ("tag", 9), ("before", 0.1), ("before", 0.3), ("at", -2), ("after", -1)),
        tokens("b", False, ("before", 0.2), ("at", -1), ("at", -0.4), ("answer", -9)),
        tokens("unjudged", False, ("unjudged", 5), ("tag", 5)),
        tokens("only the answer is wrong", False, ("before", 7), ("answer", -7)),
    ]
)
RIGHT = pl.concat(
    [
        tokens("x", True, ("before", 0), ("before", -0.2), ("tag", -0.1), ("answer", 0.1)),
        tokens("y", True, ("before", -0.15)),
    ]
)
BOTH = pl.concat([WRONG, RIGHT])


def test_region_advantages_are_token_means_over_rollouts_with_a_known_error():
    """before (0.1 + 0.3 + 0.2) / 3 = 0.2, at (-2 - 1 - 0.4) / 3 = -3.4 / 3, after -1."""
    found = region_advantages(BOTH, ["condition"], SETTINGS)
    means = dict(found.select("region", "mean").iter_rows())
    assert means == pytest.approx({"before": 0.2, "at": -3.4 / 3, "after": -1})
    assert dict(found.select("region", "tokens").iter_rows()) == {"before": 3, "at": 3, "after": 1}
    at = found.row(by_predicate=pl.col("region") == "at", named=True)
    # both rollouts drawn from a: mean -2; both from b: mean -0.7
    assert (at["low"], at["high"], at["rollouts"]) == (-2, -0.7, 2)
    after = found.row(by_predicate=pl.col("region") == "after", named=True)
    assert math.isnan(after["low"]) and math.isnan(after["high"])  # one rollout has no spread


def test_correct_rollouts_are_judged_by_all_their_tokens():
    """5 tokens: mean (0 - 0.2 - 0.1 + 0.1 - 0.15) / 5 = -0.07; below -0.1 are -0.2 and -0.15."""
    row = correct_rollouts(BOTH, ["condition"], SETTINGS).row(0, named=True)
    assert row["mean"] == pytest.approx(-0.07)
    assert row["negative_share"] == pytest.approx(2 / 5)
    # only x: 1 of 4 tokens; only y: 1 of 1
    assert (row["negative_share_low"], row["negative_share_high"]) == (0.25, 1)
    assert (row["tokens"], row["rollouts"]) == (5, 2)


def test_auc_counts_pairs_of_tokens_in_the_right_order():
    """At: -2, -1, -0.4. Other steps: 0.1, 0.3, -1, 0.2. Of 12 pairs -2 wins 4, -1 wins 3 and
    ties with one, -0.4 wins 3: (4 + 3.5 + 3) / 12."""
    row = error_auc(BOTH, ["condition"], SETTINGS).row(0, named=True)
    assert row["auc"] == pytest.approx(10.5 / 12)
    # only a: -2 against 0.1, 0.3, -1: 3 of 3; only b: -1 and -0.4 against 0.2: 2 of 2
    assert row["low"] == pytest.approx(10.5 / 12) and row["high"] == 1


IS_AT = pl.col("region") == "at"
REGION = st.sampled_from(["before", "at", "after"])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), REGION, st.integers(-3, 3)), min_size=2))
def test_auc_is_the_mann_whitney_statistic(rows):
    frame = pl.concat(
        [tokens(f"r{rollout}", False, (region, value)) for rollout, region, value in rows]
    )
    erring = frame.filter(IS_AT)["rollout_id"].unique()
    judged = frame.filter(pl.col("rollout_id").is_in(erring.implode()))
    at, other = (judged.filter(part)["advantage"] for part in (IS_AT, ~IS_AT))
    if len(at) and len(other):
        expected = mannwhitneyu(other, at).statistic / (len(at) * len(other))
        assert error_auc(frame, [], SETTINGS)["auc"].to_list() == [pytest.approx(expected)]


def test_groups_are_told_apart_and_resamples_repeat():
    other = BOTH.with_columns(pl.col("advantage") + 1, condition=pl.lit("d"))
    both = pl.concat([other, BOTH])
    for function in (region_advantages, correct_rollouts, error_auc):
        found = function(both, ["condition"], SETTINGS)
        assert found["condition"].unique(maintain_order=True).to_list() == ["c", "d"]
        alone = function(BOTH, ["condition"], SETTINGS)
        assert found.filter(condition="c").equals(alone, null_equal=True)


@pytest.mark.parametrize("function", [region_advantages, correct_rollouts, error_auc])
def test_nothing_to_look_at_gives_an_empty_frame_of_the_same_columns(function):
    full, empty = (function(frame, ["condition"], SETTINGS) for frame in (BOTH, BOTH.clear()))
    assert len(empty) == 0 and empty.schema == full.schema


def test_rollouts_of_one_problem_are_resampled_together():
    """Two problems with the means -2 and -0.7; more rollouts of the same add no certainty."""
    twice = pl.concat([WRONG, WRONG.with_columns(rollout_id=pl.col("rollout_id") + "'")])
    once, both = (region_advantages(each, ["condition"], SETTINGS) for each in (WRONG, twice))
    for end in ("mean", "low", "high"):
        assert both[end].to_list() == pytest.approx(once[end].to_list(), nan_ok=True)
