import polars as pl
import pytest

from sdcore.analysis.critic_scores import critic_scores
from sdcore.config import EvaluationConfig

SETTINGS = EvaluationConfig(resamples=500)
ROW = {
    "truth": None, "verdict": "A", "claimed": None, "valid": True, "repaired": None,
    "attempts": 1, "prompt_tokens": 100, "tokens": 10, "cost": 0.5,
}  # fmt: skip
TYPES = {
    "truth": pl.Int64, "verdict": pl.String, "claimed": pl.Int64, "valid": pl.Boolean,
    "repaired": pl.String, "attempts": pl.Int64, "prompt_tokens": pl.Int64, "tokens": pl.Int64,
    "cost": pl.Float64,
}  # fmt: skip


def score(*changes: dict) -> dict:
    return critic_scores(pl.DataFrame([ROW | change for change in changes], schema=TYPES), SETTINGS)


def test_scores_by_hand():
    """Wrong: 2 of 4 hit. Right: 3 of 5 unharmed, one alarm, one not to be made out."""
    wrong = {"verdict": "D", "truth": 2}
    scores = score(
        wrong | {"claimed": 2},
        wrong | {"claimed": 2, "valid": False},  # named, though it may not be trained on
        wrong | {"claimed": 1, "repaired": "prefix"},
        wrong | {"claimed": None},
        {}, {}, {},
        {"verdict": "D", "claimed": 1, "valid": False},
        {"verdict": None, "valid": False, "attempts": 3},
    )  # fmt: skip
    assert (scores["wrong_solutions"], scores["right_solutions"]) == (4, 5)
    assert scores["error_accuracy"] == 0.5 and scores["correct_accuracy"] == 0.6
    assert scores["f1"] == pytest.approx(2 * 0.5 * 0.6 / 1.1)
    assert scores["false_alarms"] == 0.2
    assert scores["validity"] == pytest.approx(6 / 9)
    assert scores["repaired"] == pytest.approx(1 / 9)
    assert (scores["attempts"], scores["tokens"], scores["cost"]) == (11, 90, 4.5)
    for name in ("f1", "error_accuracy", "correct_accuracy", "false_alarms", "validity"):
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    assert scores["f1_low"] < scores["f1"] < scores["f1_high"]


def test_a_critic_that_always_says_right_has_no_f1():
    scores = score(*[{"truth": 1, "verdict": "A"}] * 3, *[{}] * 3)
    assert (scores["f1"], scores["f1_low"], scores["correct_accuracy"]) == (0, 0, 1)
    # Of other wrong solutions it may name 1 - 0.025^(1/3) = 70.8 %: F1 is 2 x 0.708 / 1.708.
    assert scores["f1_high"] == pytest.approx(2 * 0.70760 / 1.70760, abs=1e-4)


def test_five_of_five_say_little_of_others():
    """Clopper and Pearson's bound for 5 of 5: 0.025^(1/5) = 47.8 %; so both, and so F1."""
    scores = score(*[{"truth": 2, "verdict": "D", "claimed": 2}] * 5, *[{}] * 5)
    for name in ("error_accuracy", "correct_accuracy", "f1", "validity"):
        assert (scores[name], scores[f"{name}_high"]) == (1, 1)
    for name in ("error_accuracy", "correct_accuracy", "f1"):
        assert scores[f"{name}_low"] == pytest.approx(0.025**0.2, abs=1e-9)
    assert scores["validity_low"] == pytest.approx(0.025**0.1, abs=1e-9)


def test_where_there_is_nothing_to_average_there_is_no_number():
    scores = score({}, {})
    assert scores["f1"] is None and scores["error_accuracy"] is None
    assert scores["correct_accuracy"] == 1


def test_one_solution_of_a_kind_has_a_score_without_bounds():
    scores = score({"truth": 2, "verdict": "D", "claimed": 2}, {})
    assert scores["f1"] == scores["error_accuracy"] == 1
    assert scores["f1_low"] is None and scores["error_accuracy_low"] is None
