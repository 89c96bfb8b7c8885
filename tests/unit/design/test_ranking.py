"""The stated rules: scores, ties, missing measures, the decision."""

import math

import pytest

from sdcore.design.ranking import decision, fates, preflight_parts, preflight_score, ranked, shared


def test_a_missing_measure_counts_as_nothing():
    able = {"teacher": 0.9, "auc": 0.8, "gain": 0.5}
    assert preflight_score(preflight_parts(able, 0.1)) == pytest.approx(0.6)
    assert preflight_score(preflight_parts({"teacher": 0.9}, 0.3)) == pytest.approx(0.4)
    assert preflight_score(preflight_parts({}, None)) == 0


def test_the_auc_of_the_error_counts_before_that_of_its_step():
    assert preflight_parts({"auc": 0.8, "error_auc": 0.6}, 0.3)["auc"] == 0.6


def test_ties_keep_the_order_that_was_before_and_the_missing_are_last():
    scores = {"a": 0.5, "b": None, "c": 0.7, "d": 0.5, "e": 0.0}
    assert ranked(scores, "abcde") == ["c", "a", "d", "e", "b"]
    assert ranked(scores, "edcba") == ["c", "d", "a", "e", "b"]


def test_the_same_mean_in_another_order_is_a_tie():
    one, other = sum([0.1, 0.2, 0.3]) / 3, sum([0.3, 0.2, 0.1]) / 3
    assert one != other and ranked({"a": other, "b": one}, "ab") == ["a", "b"]
    assert ranked({"a": 0.2, "b": 0.20001}, "ab") == ["b", "a"]


def test_fates_say_who_stays_and_why():
    scores = {"a": 0.5, "b": 0.7, "c": None, "d": 0.4}
    found = fates(scores, "abcd", 2, {"c": "seed 1 stopped"})
    assert [(each.name, each.rank, each.word) for each in found] == [
        ("b", 1, "kept"), ("a", 2, "kept"), ("d", 3, "dropped"), ("c", 4, "dropped"),
    ]  # fmt: skip
    assert found[1].reason == "place 2 of 4, cut after 2" and found[3].reason == "seed 1 stopped"


def test_a_tie_at_the_cut_is_said():
    found = fates({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.1}, "dcba", 1)
    assert [each.name for each in found] == ["c", "b", "a", "d"]
    tied = [each.reason.endswith("; tied at the cut") for each in found]
    assert tied == [True, True, True, False]


def test_what_has_no_score_never_stays():
    found = fates({"a": None, "b": 0.1}, "ab", 2)
    assert [(each.name, each.word) for each in found] == [("b", "kept"), ("a", "dropped")]
    assert not any("tied" in each.reason for each in found)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.01, 0.06, "confirmed"), (-0.06, -0.01, "refuted"), (-0.01, 0.06, "not shown"),
        (0.0, 0.06, "not shown"), (math.nan, math.nan, "not shown"),
    ],
)  # fmt: skip
def test_only_an_interval_beyond_zero_decides(low, high, word):
    assert decision(low, high) == word


def test_shares_sum_to_the_whole():
    assert shared(11, 4) == [3, 3, 3, 2] and shared(0, 3) == [0, 0, 0]
