import numpy as np
import pytest
from scipy.stats import nct

from sdcore.analysis.intervals import grid_mean
from sdcore.analysis.power import POWER, Variance, detectable, minimum_effect, variance


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


def test_many_problems_of_one_seed_give_the_normal_formula():
    """(z(0.975) + z(0.8)) * sqrt(0.04 / 10000) = 2.80159 * 0.002."""
    assert minimum_effect((0.03, 0, 0.01), 10_000, 1) == pytest.approx(2.80159 * 0.002, rel=0.01)


def test_where_seeds_dominate_the_effect_is_that_of_a_t_test_over_three_seeds():
    """Noncentral t with 2 degrees of freedom: power 0.8 at a noncentrality of 5.65 (of a two-sided
    test at 5 %), times 0.05 / sqrt(3)."""
    power = nct.sf(4.3027, 2, 5.653)
    assert power == pytest.approx(POWER, abs=0.01)
    found = minimum_effect((1e-8, 0.05**2, 1e-8), 200, 3)
    assert found == pytest.approx(5.653 * 0.05 / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize("deviation", [0, 0.01, 0.03])
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_an_effect_of_that_size_is_resolved_as_often_as_promised(seeds, deviation):
    """Whole experiments, simulated: 60 problems, with the intervals that a run would print."""
    rng, runs, problems = np.random.default_rng(seeds), 600, 60
    variances = (0.02, deviation**2, 0.03)
    effect = minimum_effect(variances, problems, seeds)
    deviation = 0 if seeds == 1 else deviation
    resolved = 0
    for _ in range(runs):
        grid_PS = effect + rng.normal(0, variances[0] ** 0.5, (problems, 1))
        grid_PS = grid_PS + rng.normal(0, deviation, (1, seeds))
        grid_PS = grid_PS + rng.normal(0, variances[2] ** 0.5, (problems, seeds))
        resolved += grid_mean(grid_PS, 0.95).low > 0
    assert resolved / runs == pytest.approx(POWER, abs=0.05)  # three standard errors


def test_a_planned_test_states_its_seeds_and_what_they_may_deviate_by():
    found = detectable(Variance(between=0.1, within=0.1), problems=200, samples=12, seeds=3)
    assert found.seeds == 3
    effects = list(found.effect.values())
    assert effects == sorted(effects) and effects[-1] > 1.5 * effects[0]
    alone = detectable(Variance(0.1, 0.1), problems=200, samples=12, seeds=1)
    assert list(alone.effect) == [0.0]
