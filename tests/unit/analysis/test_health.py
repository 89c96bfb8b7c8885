import polars as pl
import pytest

from sdcore.analysis.health import alarms, last_good, stopping
from sdcore.config import HealthConfig

HEALTHY = {
    "entropy": 0.5, "mean_length": 40.0, "format_rate": 0.9, "first_token_kl": 0.1,
    "base_drift": 0.0,
}  # fmt: skip


def rounds(*changes):
    """Rows of `round_health`: a healthy first round, then one with the changes of each."""
    rows = [HEALTHY | change | {"round": number} for number, change in enumerate([{}, *changes])]
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(HEALTHY, pl.Float64))


def seen(found):
    return [(alarm.sign, alarm.first, alarm.last, alarm.counts) for alarm in found]


@pytest.mark.parametrize(
    ("sign", "within", "beyond", "text"),
    [
        # defaults: 0.3 or 3 times the entropy, twice or half the length, 20 points of the format
        ("entropy", {"entropy": 0.15}, {"entropy": 0.14}, "entropy of 0.14 nats per token, 0.5 in"),
        ("entropy", {"entropy": 1.5}, {"entropy": 1.51}, "entropy of 1.51 nats per token, 0.5 in"),
        ("length", {"mean_length": 80.0}, {"mean_length": 80.1}, "80.1 tokens per rollout, 40 in"),
        ("length", {"mean_length": 20.0}, {"mean_length": 19.9}, "19.9 tokens per rollout, 40 in"),
        ("format", {"format_rate": 0.71}, {"format_rate": 0.69}, "69% of the rollouts well-formed"),
        ("first_token_kl", {"first_token_kl": 2.0}, {"first_token_kl": 2.1}, "KL of 2.1 nats at"),
        ("drift", {"base_drift": 1.0}, {"base_drift": 1.01}, "1.01 nats per token from the base"),
    ],
)
def test_a_sign_counts_beyond_its_threshold(sign, within, beyond, text):
    settings = HealthConfig(patience=1)
    assert alarms(rounds(within), settings) == []
    (alarm,) = alarms(rounds(within, beyond), settings)
    assert seen([alarm]) == [(sign, 2, 2, 2)] and alarm.text.startswith(text)


def test_a_sign_has_to_last_as_long_as_the_patience():
    bad = {"format_rate": 0.1}
    assert alarms(rounds(bad, {}, bad, {}), HealthConfig(patience=2)) == []
    found = alarms(rounds(bad, {}, bad, bad, bad, {}), HealthConfig(patience=2))
    assert seen(found) == [("format", 3, 5, 4)] and found[0].rounds == "rounds 3 to 5"


def test_signs_come_in_the_order_in_which_they_count():
    long, lost = {"mean_length": 100.0}, {"format_rate": 0.0}
    found = alarms(rounds(lost, long | lost, long, long), HealthConfig(patience=2))
    assert seen(found) == [("format", 1, 2, 2), ("length", 2, 4, 3)]


def test_only_the_signs_that_are_named_stop():
    shown = rounds({"format_rate": 0.0}, {"format_rate": 0.0, "entropy": 0.0}, {"entropy": 0.0})
    assert stopping(shown, HealthConfig()) is None
    assert seen([stopping(shown, HealthConfig(stop_when=("entropy",)))]) == [("entropy", 2, 3, 3)]
    both = HealthConfig(stop_when=("entropy", "format"))
    assert stopping(shown, both).sign == "format"


def test_the_last_good_policy_shows_none_of_the_signs_that_stop():
    bad, dull = {"format_rate": 0.0}, {"entropy": 0.0}
    shown = rounds({}, dull, bad, dull, bad, bad)
    assert last_good(shown, HealthConfig(stop_when=("format",))) == 4
    assert last_good(shown, HealthConfig(stop_when=("format", "entropy"))) == 1
    assert last_good(rounds(bad, bad), HealthConfig(stop_when=("format",))) == 0
    assert last_good(shown.head(0), HealthConfig(stop_when=("format",))) == 0


def test_with_a_lag_the_rollouts_of_a_policy_are_those_of_the_round_after_it():
    # Policies 0, 0, 1, 2, 3 sampled the five rounds: that after two rounds is the first bad one.
    bad, dull = {"format_rate": 0.0}, {"entropy": 0.0}
    shown, format_ = rounds({}, {}, bad, bad), HealthConfig(stop_when=("format",))
    assert (last_good(shown, format_), last_good(shown, format_, lag=1)) == (2, 1)
    # The entropy is that of the weights that are trained.
    both = HealthConfig(stop_when=("format", "entropy"))
    assert last_good(rounds({}, dull, {}, bad), both, lag=1) == 1
    assert last_good(rounds({}, {}, dull), HealthConfig(stop_when=("entropy",)), lag=1) == 2
    # Nobody has sampled from the last policy yet.
    assert last_good(rounds({}, {}), format_, lag=1) == 1
    assert last_good(rounds(), format_, lag=1) == 0


def test_rounds_that_come_later_do_not_change_the_decision():
    bad, settings = {"format_rate": 0.0}, HealthConfig(stop_when=("format",))
    early, late = rounds({}, bad, bad), rounds({}, bad, bad, bad, {}, bad)
    one, other = stopping(early, settings), stopping(late, settings)
    assert (one.sign, one.first, one.counts) == (other.sign, other.first, other.counts)


def test_what_is_unknown_is_no_sign():
    nothing = dict.fromkeys(HEALTHY)
    assert alarms(rounds(nothing, nothing), HealthConfig()) == []
    started = rounds({"entropy": 0.0}, {"entropy": 0.0}).with_columns(
        entropy=pl.when(pl.col("round") > 0).then(pl.col("entropy"))  # GRPO's flat first round
    )
    assert alarms(started, HealthConfig()) == []
    assert alarms(rounds().head(0), HealthConfig()) == []


def test_a_first_round_without_a_step_is_no_beginning_to_compare_with():
    dull = {"entropy": 0.14}  # below 0.3 of the 0.5 in the second round
    unknown = pl.when(pl.col("round") > 0).then(pl.col("entropy"))
    shown = rounds({}, dull, dull).with_columns(entropy=unknown)
    settings = HealthConfig(stop_when=("entropy",))
    (alarm,) = alarms(shown, settings)
    assert seen([alarm]) == [("entropy", 2, 3, 3)] and alarm.text.endswith("0.5 in the first round")
    assert stopping(shown, settings) == alarm and last_good(shown, settings) == 1
