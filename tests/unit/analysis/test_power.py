import numpy as np
import pytest
from scipy.stats import norm

from sdcore.analysis.power import POWER, Variance, detectable, variance


def test_variance_is_split_between_and_within_problems():
    """Means 1, 0, 1/2, 1/2 have variance 1/6; within: 0, 0, 1/2, 1/2, on average 1/4.
    Between: 1/6 - 1/4 / 2 = 1/24."""
    found = variance([[1, 1], [0, 0], [1, 0], [0, 1]])
    assert found == Variance(pytest.approx(1 / 24), pytest.approx(1 / 4))


def test_problems_that_do_not_differ_have_no_variance_between_them():
    assert variance([[1, 0], [0, 1]]) == Variance(0, pytest.approx(0.5))


@pytest.mark.parametrize("correct", [[[1], [0]], [[1, 0]]])
def test_a_single_sample_or_problem_does_not_tell_the_parts_apart(correct):
    assert variance(correct) is None


def test_the_detectable_effect_of_a_hand_computed_design():
    """z(0.975) + z(0.8) = 1.95996 + 0.84162 = 2.80159. Noise 2 * 0.2 / (4 * 2) = 0.05; over 100
    problems sqrt(0.0005) = 0.0223607; with 2 * 0.1 beside it sqrt(0.0025) = 0.05."""
    found = detectable(Variance(between=0.1, within=0.2), problems=100, samples=4, seeds=2)
    assert found.shared == pytest.approx(2.80159 * 0.0223607, rel=1e-5)
    assert found.unrelated == pytest.approx(2.80159 * 0.05, rel=1e-5)


def test_an_effect_of_that_size_is_found_as_often_as_promised():
    """3000 experiments of 200 problems with 4 samples each and one and the same effect on all."""
    rng, problems, samples = np.random.default_rng(0), 200, 4
    rates_P = np.full(problems, 0.4)
    within = 0.4 * 0.6
    effect = detectable(Variance(0.0, within), problems, samples, 1).shared
    one_RP = rng.binomial(samples, rates_P + effect / 2, (3000, problems)) / samples
    other_RP = rng.binomial(samples, rates_P - effect / 2, (3000, problems)) / samples
    difference_RP = one_RP - other_RP
    z_R = difference_RP.mean(1) / (difference_RP.std(1, ddof=1) / np.sqrt(problems))
    assert np.mean(z_R > norm.ppf(0.975)) == pytest.approx(POWER, abs=0.03)
