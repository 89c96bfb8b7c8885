import polars as pl
import pytest

from sdcore.analysis.scoring import per_problem, score
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


def test_per_problem_counts_equal_answers_as_one_and_missing_ones_as_votes():
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


def test_the_majority_counts_answers_and_not_notations():
    """Nine samples: 7 five times in five notations, all wrong, against 0.5 four times, right."""
    notations = ["7", "7.0", r"\frac{14}{2}", "$7", r"\boxed{7}"]
    answers = [*notations, "0.5", "1/2", "0.50", "0.5"]
    frame = pl.DataFrame(
        {"problem_id": "p", "sample_index": range(9), "answer": answers,
         "correct": [False] * 5 + [True] * 4}
    )  # fmt: skip
    assert per_problem(frame)["maj_at_k"].to_list() == [0]
    swapped = frame.with_columns(~pl.col("correct"))
    assert per_problem(swapped)["maj_at_k"].to_list() == [1]


def test_problem_scores_carry_the_names_of_their_policy():
    frame = rollouts(p=["7", "7"], q=["7", "1"])
    names = {"experiment_id": "e", "condition": "c", "seed": 3, "score_id": "s", "round": 2}
    rows = score(frame, k=2, settings=SETTINGS).problem_rows(names | {"split": "test"})
    assert rows.select("condition", "seed", "problem_id", "avg_at_k").rows() == [
        ("c", 3, "p", 1.0), ("c", 3, "q", 0.5),
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
    row = score(frame, k=4, settings=SETTINGS).columns
    assert (row["problems"], row["k"]) == (2, 4)
    assert (row["avg_at_k"], row["maj_at_k"], row["pass_at_k"]) == (0.25, 0.5, 0.5)
    # Problems at 0.5 and 0: the standard error is 0.25, t(1) is 12.7, and shares end at 0 and 1.
    assert (row["avg_at_k_low"], row["avg_at_k_high"]) == (0, 1)
    assert row["mean_length"] == 2.5  # 1, 2, 3 and 4 tokens
    assert row["format_rate"] == 7 / 8
    assert row["mean_reward"] == (2 * 1 + 6 * 0.25) / 8


def test_a_score_of_repeated_samples_is_refused():
    frame = rollouts(p=["7", "7"], q=["1", "2"])
    with pytest.raises(DataError, match="share a sampling seed"):
        score(frame.with_columns(sampling_seed=pl.lit(5)), k=2, settings=SETTINGS)
    with pytest.raises(DataError, match="wrong number of samples"):
        score(frame, k=3, settings=SETTINGS)
