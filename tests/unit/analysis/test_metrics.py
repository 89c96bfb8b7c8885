import math
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcore.analysis.metrics import avg_at_k, interval, maj_at_k, pass_at_k, per_problem, score
from sdcore.config import EvaluationConfig
from sdcore.errors import DataError

SETTINGS = EvaluationConfig(samples=4, resamples=1000)


def rollouts(**problems: list[str | None]) -> pl.DataFrame:
    """Samples of problems by their answers; '7' and '7.0' are correct."""
    rows = [
        {
            "problem_id": problem, "sample_index": index, "sampling_seed": 100 * number + index,
            "answer": answer, "correct": answer in ("7", "7.0"), "well_formed": answer is not None,
            "response_ids": [1] * (index + 1), "reward": 1.0 if answer in ("7", "7.0") else 0.25,
        }
        for number, (problem, answers) in enumerate(problems.items())
        for index, answer in enumerate(answers)
    ]  # fmt: skip
    return pl.DataFrame(rows)


def test_avg_is_the_share_of_correct_samples():
    assert avg_at_k([[1, 0, 0, 1], [0, 0, 0, 0]]).tolist() == [0.5, 0]


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        ([1, 1, 2, 3], [1, 1, 0, 0], 1),  # 1 has two of four votes
        ([1, 1, 1, 7], [0, 0, 0, 1], 0),
        ([1, 1, 2, 2], [1, 1, 0, 0], 1 / 2),  # a tie of two, one of them correct
        ([1, 2, 3, 4], [0, 0, 1, 0], 1 / 4),  # a tie of four
        ([1, 1, 2, 2, 3], [0, 0, 0, 0, 1], 0),  # the correct one is not among the tied
        ([4], [1], 1),
        ([4], [0], 0),
    ],
)
def test_majority_shares_ties_fairly(answers, correct, expected):
    assert maj_at_k([answers], [correct]).tolist() == [expected]


def test_pass_at_k_is_the_mean_over_all_subsets():
    """Of the 6 pairs of 4 samples with 1 correct, 3 hold it; with 2 correct, 5 hold one."""
    found = pass_at_k([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], k=2)
    assert found.tolist() == pytest.approx([3 / 6, 5 / 6, 0, 1])


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_equals_brute_force(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    draws = list(combinations(correct, k))
    expected = sum(map(any, draws)) / len(draws)
    assert pass_at_k([correct], k)[0] == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(DataError, match="at least k samples"):
        pass_at_k([[1, 0, 0, 1]], k)


def test_per_problem_counts_correct_answers_as_one_and_missing_ones_as_votes():
    frame = rollouts(
        spelled=["7", "7.0", "5", "5"],  # 7 and 7.0 are one answer: a tie with 5
        silent=[None, None, "7", "3"],  # none has most votes: the majority is wrong
        won=["7", "7.0", "7", None],
    ).sample(fraction=1, shuffle=True, seed=1)
    found = per_problem(frame).sort("problem_id")
    assert found["problem_id"].to_list() == ["silent", "spelled", "won"]
    assert found["avg_at_k"].to_list() == [0.25, 0.5, 0.75]
    assert found["maj_at_k"].to_list() == [0, 0.5, 1]
    assert found["pass_at_k"].to_list() == [1, 1, 1]


def test_per_problem_tells_policies_apart():
    one = rollouts(p=["7", "7"], q=["7", "1"]).with_columns(condition=pl.lit("one"))
    two = rollouts(p=["1", "2"], q=["7", "7"]).with_columns(condition=pl.lit("two"))
    found = per_problem(pl.concat([two, one]), by=["condition"])
    assert found.select("condition", "problem_id", "avg_at_k").rows() == [
        ("one", "p", 1), ("one", "q", 0.5), ("two", "p", 0), ("two", "q", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame.head(-1),
        lambda frame: frame.with_columns(sample_index=pl.lit(0)),
        lambda frame: frame.with_columns(pl.col("sample_index").replace(1, 0)),
        lambda frame: frame.with_columns(sample_index=pl.col("sample_index") + 1),
        lambda frame: pl.concat([frame, frame.head(3)]),
        lambda frame: frame.clear(),
    ],
    ids=[
        "one is missing",
        "all one sample",
        "one counts twice",
        "from one",
        "appended twice",
        "empty",
    ],
)
def test_samples_must_be_distinct_and_complete(spoil):
    with pytest.raises(DataError, match="missing or repeat"):
        per_problem(spoil(rollouts(p=["7", "1", "2"], q=["7", "7", "3"])))


def test_score_gives_the_columns_of_the_table():
    frame = rollouts(p=["7", "7", "5", None], q=["1", "2", "3", "4"])
    row = score(frame, k=4, settings=SETTINGS)
    assert (row["problems"], row["k"]) == (2, 4)
    assert (row["avg_at_k"], row["maj_at_k"], row["pass_at_k"]) == (0.25, 0.5, 0.5)
    # two problems: a resample has both from p, both from q, or one of each
    assert (row["avg_at_k_low"], row["avg_at_k_high"]) == (0, 0.5)
    assert row["mean_length"] == 2.5  # 1, 2, 3 and 4 tokens
    assert row["format_rate"] == 7 / 8
    assert row["mean_reward"] == (2 * 1 + 6 * 0.25) / 8


def test_a_score_of_repeated_samples_is_refused():
    frame = rollouts(p=["7", "7"], q=["1", "2"])
    with pytest.raises(DataError, match="share a sampling seed"):
        score(frame.with_columns(sampling_seed=pl.lit(5)), k=2, settings=SETTINGS)
    with pytest.raises(DataError, match="wrong number of samples"):
        score(frame, k=3, settings=SETTINGS)


def test_interval_covers_as_often_as_it_says():
    """Of 400 intervals at 90 %, 360 should cover; the bounds are 3 standard deviations (6) wide."""
    rng = np.random.default_rng(1)
    draws = rng.normal(2, 1, size=(400, 60))
    bounds = [interval(values, confidence=0.9, resamples=400) for values in draws]
    covered = sum(low <= 2 <= high for low, high in bounds)
    assert 360 - 18 - 8 <= covered <= 360 + 18  # the percentile method covers a little too little


def test_interval_is_repeatable_and_narrows():
    uneven = np.sqrt(np.arange(100))
    assert interval(uneven) == interval(uneven) != interval(uneven, seed=1)
    values = np.arange(100) % 2
    # standard error 0.5 / sqrt(100) = 0.05, so 95 % is about 0.5 ± 0.098
    assert interval(values) == pytest.approx((0.402, 0.598), abs=0.015)
    assert interval(np.ones(5)) == (1, 1)
    assert all(math.isnan(bound) for bound in interval([0.5]))
