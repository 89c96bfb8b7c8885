import math

import numpy as np
import pytest
from scipy.stats import binomtest, t

from sdcore.analysis.intervals import (
    BOTH,
    ONE_SEED,
    PROBLEMS,
    TWO_SEEDS,
    MeanSquares,
    bootstrap,
    grid_mean,
    half_width,
    mean_squares,
)


def test_mean_squares_of_a_hand_computed_grid():
    """Problems' means 1 and 4, seeds' means 2 and 3, grand mean 2.5; residuals 1/2, -1/2."""
    found = mean_squares([[0, 2], [4, 4]])
    assert (found.problem, found.seed, found.residual) == pytest.approx((9, 1, 1))


def test_mean_squares_of_one_seed_are_those_of_the_problems_alone():
    found = mean_squares([[1], [2], [3]])
    assert (found.problem, found.seed, found.residual, found.seeds) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("squares", "problems", "seeds", "variance", "freedom"),
    [
        # 25 / (16 / 10 + 1.3 * 9 / 3 + 4 / (10 * 3)) = 4.43787 degrees
        ((4, 3, 2), 11, 4, 4 + (3 - 2), 750 / 169),
        # Two seeds count too: 25 / (16 / 10 + 1.3 * 9 + 4 / 10) = 1.82482
        ((4, 3, 2), 11, 2, 4 + (3 - 2), 250 / 137),
        # 64 / (16 / 4 + 1.3 * 16 / 4) = 6.96 is more than five problems and seeds can give
        ((4, 4, 0), 5, 5, 4 + 4, 4),
        # 49 / (49 / 2 + 1.3 * 4 / 2 + 4 / 4) = 1.74 is less than those over three seeds alone
        ((7, 2, 2), 3, 3, 7, 2),
    ],
)  # fmt: skip
def test_the_degrees_of_freedom_are_satterthwaites(squares, problems, seeds, variance, freedom):
    half = half_width(MeanSquares(*squares, problems, seeds), 0.95)
    expected = t.ppf(0.975, freedom) * math.sqrt(variance / (problems * seeds))
    assert half == pytest.approx(expected, rel=1e-9)


def test_one_seed_is_a_t_interval_over_problems():
    """Mean 2, standard deviation 1, three problems: t(2) = 4.30265 times 1 / sqrt(3)."""
    found = grid_mean([[1], [2], [3]], 0.95)
    half = 4.30265 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-5)
    assert found.covers == ONE_SEED
    assert grid_mean([[1], [2], [3]], 0.95, fixed=True).covers == PROBLEMS


def test_where_seeds_dominate_it_is_a_t_interval_over_seeds():
    """Every problem says 1, 2, 3: three seeds, so t(2) as above and nothing from 500 problems."""
    found = grid_mean(np.tile([1.0, 2.0, 3.0], (500, 1)), 0.95)
    half = 4.30265 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-5)
    assert found.covers == BOTH


def test_two_seeds_are_said_to_be_too_few():
    rng = np.random.default_rng(2)
    grids = [rng.normal(0, 0.2, (80, seeds)) for seeds in (1, 2, 3)]
    assert [grid_mean(grid, 0.95).covers for grid in grids] == [ONE_SEED, TWO_SEEDS, BOTH]
    assert "too few" in TWO_SEEDS and "89 %" in TWO_SEEDS


def test_seeds_that_do_not_differ_leave_the_interval_over_problems():
    values = np.arange(30.0)
    one, three = (grid_mean(np.tile(values[:, None], seeds), 0.95) for seeds in (1, 3))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))


def test_the_quickstarts_difference_over_its_seeds_is_not_resolved():
    """Seeds at +1.4, +2.0 and +11.2 points: over three seeds alone 4.85 +- 13.6."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2, (200, 3))
    grid = np.array([0.0138, 0.0196, 0.1121]) + noise - noise.mean(0)
    found = grid_mean(grid, 0.95)
    assert found.value == pytest.approx(0.0485, abs=1e-4)
    assert found.low < -0.05 and found.high > 0
    assert grid_mean(grid[:, 2:], 0.95).low > 0


def test_bounds_end_where_the_value_can_be_and_are_unknown_for_one_problem():
    found = grid_mean([[0.0], [0.1]], 0.95, limits=(0, 1))
    assert (found.low, found.high) == (0, pytest.approx(0.05 + 12.7062 * 0.05, rel=1e-4))
    single = grid_mean([[0.5, 0.7]], 0.95)
    assert math.isnan(single.low) and math.isnan(single.high)


@pytest.mark.parametrize("deviation", [0, 0.01, 0.05])
def test_intervals_over_problems_and_seeds_cover_as_often_as_they_say(deviation):
    """1000 grids; the standard error of the share is 0.7 points. An interval over problems alone
    covers 33 % at a deviation of 5 points."""
    rng = np.random.default_rng(1)
    runs, problems, seeds = 1000, 80, 3
    grids = rng.normal(0, 0.2, (runs, problems, 1)) + rng.normal(0, 0.15, (runs, problems, seeds))
    grids = grids + rng.normal(0, deviation, (runs, 1, seeds)) if deviation else grids
    found = [grid_mean(grid, 0.95) for grid in grids]
    assert 0.93 <= np.mean([each.low <= 0 <= each.high for each in found]) <= 0.98


def test_a_bootstrap_takes_five_clusters():
    values = np.array([1.0, 3.0, 1.0, 3.0, 2.0])
    value, low, high = bootstrap(lambda n_RN: (n_RN @ values / 5)[:, None], [5], 0.95, 500)[0]
    assert value == 2 and 1 <= low < 2 < high <= 3
    few = bootstrap(lambda n_RN: (n_RN @ values[:4] / 4)[:, None], [4], 0.95, 500)
    assert few[0, 0] == 2 and np.isnan(few[0, 1:]).all()


def test_a_bootstrap_has_the_same_bounds_each_time():
    values = np.arange(40.0) ** 2
    bounds = [bootstrap(lambda n: (n @ values / 40)[:, None], [40], 0.95, 50) for _ in range(2)]
    assert bounds[0].tolist() == bounds[1].tolist()


@pytest.mark.parametrize("seeds", [1, 3])
def test_none_or_all_of_a_few_problems_leaves_room_for_others(seeds):
    none = grid_mean(np.zeros((26, seeds)), 0.95, limits=(0.0, 1.0))
    every = grid_mean(np.ones((26, seeds)), 0.95, limits=(0.0, 1.0))
    exact = binomtest(0, 26).proportion_ci(0.95, method="exact").high  # 13.2 %
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(exact, rel=1e-9))
    assert (every.value, every.low, every.high) == (1, pytest.approx(1 - exact, rel=1e-9), 1)
    lost = grid_mean(-np.ones((26, seeds)), 0.95, limits=(-1.0, 1.0))
    assert (lost.low, lost.high) == (-1, pytest.approx(-1 + 2 * exact, rel=1e-9))


@pytest.mark.parametrize("seeds", [1, 3])
def test_problems_that_all_differ_alike_leave_room_for_others(seeds):
    """Three differences of 1/2: a share q of others differs, 0.025 = (1 - q)^3, q = 0.70760.

    At most by 1.5 points down and 0.5 up. Such an interval resolves nothing.
    """
    found = grid_mean(np.full((3, seeds), 0.5), 0.95, limits=(-1.0, 1.0))
    bounds = 0.5 - 0.70760 * 1.5, 0.5 + 0.70760 * 0.5
    assert (found.low, found.high) == pytest.approx(bounds, abs=1e-4)
    uneven = np.array([[7 / 12 - 5 / 12], [5 / 12 - 3 / 12], [3 / 12 - 1 / 12]])  # but for rounding
    assert grid_mean(uneven, 0.95, limits=(-1.0, 1.0)).low < 0
    unlimited = grid_mean(np.full((3, seeds), 0.5), 0.95)
    assert (unlimited.low, unlimited.high) == (0.5, 0.5)
