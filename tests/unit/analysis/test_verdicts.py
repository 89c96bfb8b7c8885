import math

import polars as pl
import pytest

from sdcore.analysis.verdicts import RULES, judge

GOOD = {
    "auc": (0.8, 0.7, 0.9, 20),
    "at": (-0.5, -0.8, -0.2, 20),
    "copied": (0.1, 0.0, 0.2, 20),
    "correct": (0.02, 0.0, 0.04, 15),
    "negative_share": (0.01, 0.0, 0.03, 15),
}
ABLE = {"teacher": (0.5, 0.4, 0.6, 40), "student": (0.3, 0.2, 0.4, 40)}


def verdict(**changes):
    rows = [
        {"measure": name, "value": value, "low": low, "high": high, "rollouts": rollouts}
        for name, (value, low, high, rollouts) in (GOOD | changes).items()
        if rollouts
    ]
    return judge("c", pl.DataFrame(rows))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "localised"),
        # a threshold is passed by the whole interval, not by the value
        ({"negative_share": (0.09, 0.05, 0.2, 15)}, "localised"),
        ({"negative_share": (0.09, 0.051, 0.2, 15)}, "diffuse"),
        ({"auc": (0.6, 0.501, 0.7, 20)}, "localised"),
        ({"auc": (0.6, 0.5, 0.7, 20)}, "no signal"),
        ({"auc": (0.3, 0.2, 0.4, 20)}, "no signal"),
        ({"at": (-0.5, -0.8, -0.001, 20)}, "localised"),
        ({"at": (-0.5, -0.8, 0.0, 20)}, "no signal"),
        ({"copied": (0.8, 0.5, 0.9, 20)}, "localised"),
        ({"copied": (0.8, 0.51, 0.9, 20)}, "copies"),
        # the earlier rule wins
        ({"copied": (0.8, 0.6, 0.9, 20), "auc": (0.3, 0.2, 0.4, 20)}, "copies"),
        ({"auc": (0.6, 0.5, 0.7, 20), "negative_share": (0.5, 0.4, 0.6, 15)}, "no signal"),
        # a teacher that is no better has nothing to teach, however well it points at errors
        (ABLE | {"gain": (0.2, 0.001, 0.4, 40)}, "localised"),
        (ABLE | {"gain": (0.2, 0.0, 0.4, 40)}, "teacher not better"),
        (ABLE | {"gain": (-0.2, -0.4, -0.1, 40)}, "teacher not better"),
        (ABLE | {"gain": (0.2, 0.0, 0.4, 40), "at": (-0.5, -0.8, -0.2, 9)}, "teacher not better"),
        (ABLE | {"gain": (0.2, 0.0, 0.4, 9)}, "localised"),
        (ABLE | {"gain": (0.2, math.nan, math.nan, 40)}, "localised"),
        # ten rollouts of each kind are enough, nine are not
        ({"at": (-0.5, -0.8, -0.2, 10)}, "localised"),
        ({"at": (-0.5, -0.8, -0.2, 9)}, "not enough data"),
        ({"correct": (0.0, 0.0, 0.0, 9)}, "not enough data"),
        ({"at": (0, 0, 0, 0)}, "not enough data"),
        ({"auc": (0, 0, 0, 0)}, "no signal"),  # traces of one step have no AUC
        ({"correct": (0, 0, 0, 0), "negative_share": (0, 0, 0, 0)}, "not enough data"),
        # in a step of words the error alone may be objected to, the rest being forced
        ({"auc": (0.5, 0.4, 0.6, 20), "error_auc": (0.9, 0.8, 1, 20), "error": (-4, -5, -3, 20)},
         "localised"),
        ({"auc": (0.5, 0.4, 0.6, 20), "error_auc": (0.6, 0.5, 1, 20), "error": (-4, -5, -3, 20)},
         "no signal"),
        ({"auc": (0.5, 0.4, 0.6, 20), "error_auc": (0.9, 0.8, 1, 20), "error": (-1, -2, 0, 20)},
         "no signal"),
        ({"before": (-0.3, -0.5, -0.11, 20)}, "diffuse"),
        ({"before": (-0.3, -0.5, -0.1, 20)}, "localised"),
        # of too few problems no bounds are known
        ({"at": (-0.5, math.nan, math.nan, 20)}, "not enough data"),
        ({"negative_share": (0.09, math.nan, math.nan, 15)}, "not enough data"),
        # without a corrected trace nothing is known of copying
        ({"copied": (0, 0, 0, 0)}, "localised"),
    ],
)  # fmt: skip
def test_the_first_rule_that_applies_is_the_verdict(changes, word):
    found = verdict(**changes)
    assert found.context == "c" and found.word == word
    assert word in RULES


MASKED = {"gain_all": (0.3, 0.1, 0.5, 20), "added_all": (0.3, 0.1, 0.5, 20)}
WORSE = {"gain_after": (0.1, -0.1, 0.3, 20), "added_after": (0.3, 0.2, 0.4, 20)}


@pytest.mark.parametrize(
    ("changes", "word", "better"),
    [
        (MASKED | WORSE, "localised", ("all",)),
        (WORSE, "teacher not better", ()),
        # more than from the question, but no more than without the context at the same places
        ({"gain_all": (0.3, 0.1, 0.5, 20), "added_all": (0.1, 0.0, 0.2, 20)},
         "teacher not better", ()),
        # neither the whole teacher nor every mask may be without a gain
        (ABLE | {"gain": (0.2, 0.0, 0.4, 40)} | MASKED, "teacher not better", ("all",)),
        (ABLE | {"gain": (0.2, 0.1, 0.4, 40)} | WORSE, "teacher not better", ()),
        # nine responses, or no bounds, are not enough
        ({"gain_all": (0.3, -0.1, 0.5, 9), "added_all": (0.3, 0.1, 0.5, 9)}, "localised", None),
        ({"gain_all": (0.3, math.nan, math.nan, 20), "added_all": (0.3, 0.1, 0.5, 20)},
         "localised", None),
    ],
)  # fmt: skip
def test_a_teacher_has_to_be_better_under_one_mask(changes, word, better):
    found = verdict(**changes)
    assert (found.word, found.better_at) == (word, better)


def test_a_mask_that_helps_all_the_same_is_named():
    why = verdict(**ABLE, **MASKED, gain=(0.2, 0.0, 0.4, 40)).why
    assert why.endswith("(+20 points, +0 to +40), though it is where it writes all tokens")


def test_the_best_mask_of_a_teacher_that_is_no_better_is_named():
    assert verdict(**WORSE).why == (
        "whichever tokens it writes, no more answers are shown to be right; at most +10 points "
        "(−10 to +30) from tokens after the error, and +30 points (+20 to +40) against the student "
        "going on there by itself"
    )


def test_the_reason_has_the_numbers():
    assert verdict().why == (
        "it finds the wrong step (AUC 0.80, 0.70 to 0.90), makes 10% of the errors likelier and "
        "objects to 1.0% of the tokens of correct rollouts"
    )
    assert (
        verdict(at=(-0.5, -0.8, -0.2, 3)).why
        == "3 wrong rollouts with a judged error, 15 correct ones"
    )


def test_an_auc_that_is_not_known_is_not_told():
    why = "it does not object to the error before other tokens"
    assert verdict(auc=(0.5, 0.4, 0.6, 20)).why == f"{why} (AUC 0.50, 0.40 to 0.60)"
    assert verdict(auc=(0, 0, 0, 0)).why == f"{why} (its steps have no other tokens)"


def test_diffusion_says_where_it_is_seen():
    assert "to correct steps (-0.30 nats) too" in verdict(before=(-0.3, -0.5, -0.2, 20)).why
    assert "to 9.0% of the tokens" in verdict(negative_share=(0.09, 0.06, 0.2, 15)).why


def test_bounds_that_are_not_known_support_nothing():
    """A single problem has no interval."""
    unknown = float("nan")
    assert verdict(auc=(0.9, unknown, unknown, 20)).word == "no signal"


@pytest.mark.parametrize(
    ("gain", "why"),
    [
        (
            (-0.2, -0.4, -0.1, 40),
            "with it the model is right less often: 50%, against 30% without "
            "(−20 points, −40 to −10)",
        ),
        (
            (0.2, -0.001, 0.4, 40),
            "with it the model is not shown to be right more often: 50%, against 30% without "
            "(+20 points, +0 to +40)",
        ),
    ],
)
def test_a_teacher_that_is_no_better_is_described_in_points(gain, why):
    assert verdict(**ABLE, gain=gain).why == why
