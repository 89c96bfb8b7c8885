"""How often a 95 % interval holds the truth, and whether the detectable effect is what it says.

Whole experiments are simulated: problems of different difficulty, two conditions and the base,
seeds that deviate, two checkpoints of which validation chooses one, 12 samples per test problem.
Cells vary seeds, problems and the deviation of a condition's accuracy by its seed, 0 to 5 points.
The truth is the mean over other problems, seeds and validation sets.

`paired` is the difference of two conditions, `gain` that of one to the base, `before` what an
interval over problems alone covers of the first. `effect` is the predicted minimum detectable
effect of `paired` over the simulated one.

The headline is the worst distance from 95 % in a cell with 3 seeds or more; with one seed the
interval is within this seed only, and its cells show what that leaves out. Two seeds are too few,
and its cells show how few.
The default of 2000 data sets per cell takes about a minute; its standard error is 0.5 points.
Usage: coverage.py [data sets per cell]
"""

import json
import sys
from dataclasses import dataclass

import numpy as np

from sdcore.analysis.intervals import MeanSquares, half_width, mean_squares
from sdcore.analysis.power import minimum_effect

SEEDS, PROBLEMS, DEVIATIONS = (1, 2, 3, 5), (30, 80, 200), (0.0, 0.01, 0.02, 0.03, 0.05)
SAMPLES, VALIDATION, VALIDATION_SAMPLES = 12, 100, 4
CONFIDENCE, LOW, HIGH = 0.95, 0.93, 0.97
GAINS = np.array([[0.4, 0.7], [0.3, 0.5]])  # logits over the base: condition, checkpoint
DIFFICULTY, OWN, INTERACTION = 1.6, 0.7, 0.4  # logits: problems, of a condition, and of a seed
CENTRE, SLOPE = -0.9, 0.15  # a mean accuracy near 0.33, and points per logit at it
CHUNK = 500  # data sets in memory at once


@dataclass(frozen=True)
class Grids:
    """Differences [D, P, S] of D data sets, and the true ones of each seed, [D, S]."""

    paired: np.ndarray
    gain: np.ndarray
    true_paired: np.ndarray
    true_gain: np.ndarray


def main(datasets: int = 2000) -> None:
    rng = np.random.default_rng(0)
    truths = {deviation: truth(rng, deviation) for deviation in DEVIATIONS}
    cells = [
        cell(rng, seeds, problems, deviation, truths[deviation], datasets)
        for seeds in SEEDS
        for problems in PROBLEMS
        for deviation in DEVIATIONS
    ]
    counted = [row for row in cells if row["seeds"] >= 3]
    covered = [row[name] for row in counted for name in ("paired", "gain")]
    effects = [row["effect"] for row in counted]
    worst = max(abs(share - CONFIDENCE) for share in covered)
    print(json.dumps({
        "name": "coverage",
        "headline": round(worst, 4),
        "target": "at most 0.02 with 3 or more seeds; detectable effect within 15 %",
        "holds": worst <= CONFIDENCE - LOW and all(abs(e - 1) <= 0.15 for e in effects),
        "standard_error": round((CONFIDENCE * (1 - CONFIDENCE) / datasets) ** 0.5, 4),
        "outside": f"{sum(not LOW <= s <= HIGH for s in covered)} of {len(covered)}",
        "range": [min(covered), max(covered)],
        "effect_range": [min(effects), max(effects)],
        "data_sets": datasets,
        "cells": cells,
    }))  # fmt: skip


def cell(rng, seeds, problems, deviation, true, datasets) -> dict[str, float]:
    parts = [
        simulate(rng, min(CHUNK, datasets - start), problems, seeds, deviation)
        for start in range(0, datasets, CHUNK)
    ]
    paired, gain = (np.concatenate([getattr(p, n) for p in parts]) for n in ("paired", "gain"))
    found = squares(paired)
    half = half_width(found, CONFIDENCE)
    mean = paired.mean((1, 2))
    spread = paired.mean(2).std(1, ddof=1) / np.sqrt(problems)
    row = {"seeds": seeds, "problems": problems, "deviation": deviation}
    row["paired"] = float(np.mean(abs(mean - true[0]) <= half))
    row["gain"] = float(
        np.mean(abs(gain.mean((1, 2)) - true[1]) <= half_width(squares(gain), CONFIDENCE))
    )
    row["before"] = float(np.mean(abs(mean - true[0]) <= 1.96 * spread))
    if seeds > 1:
        # The interval moves with the effect, so that of power 0.8 is a quantile of its lower bound.
        simulated = float(np.quantile(true[0] - (mean - half), 0.8))
        cells = float(np.mean(found.residual))
        variances = (
            (float(np.mean(found.problem)) - cells) / seeds,
            max((float(np.mean(found.seed)) - cells) / problems, 0.0),
            cells,
        )
        row["effect"] = round(minimum_effect(variances, problems, seeds) / simulated, 3)
    return {name: round(value, 3) for name, value in row.items()}


def squares(grids_DPS: np.ndarray) -> MeanSquares:
    """The mean squares of many grids, as arrays."""
    found = [mean_squares(grid) for grid in grids_DPS]
    arrays = (
        np.array([getattr(each, n) for each in found]) for n in ("problem", "seed", "residual")
    )
    return MeanSquares(*arrays, problems=grids_DPS.shape[1], seeds=grids_DPS.shape[2])


def truth(rng, deviation, datasets=4000) -> tuple[float, float]:
    """Mean over seeds and validation sets of the true differences of what validation chooses."""
    found = simulate(rng, datasets, 60, 5, deviation)
    return float(found.true_paired.mean()), float(found.true_gain.mean())


def simulate(rng, datasets, problems, seeds, deviation) -> Grids:
    """Axes: data set D, condition C (the base last), problem P, seed S, round R."""
    shift_DCSR = GAINS[:, None, :] + deviation / SLOPE * rng.normal(size=(datasets, 2, seeds, 1))
    # A quarter of the deviation's variance comes and goes between the checkpoints.
    wander = 0.5 * deviation / SLOPE * rng.normal(size=(datasets, 2, seeds, 2))
    shift_DCSR = GAINS[:, None, :] + np.sqrt(0.75) * (shift_DCSR - GAINS[:, None, :]) + wander
    validation = solve(rng, shift_DCSR, VALIDATION, VALIDATION_SAMPLES)
    chosen_DCS = validation.mean(2).argmax(-1)
    shift_DCS = np.take_along_axis(shift_DCSR, chosen_DCS[..., None], -1)[..., 0]
    solved_DCPS, base_DP = solve_test(rng, shift_DCS, problems)
    true_DCS = accuracy(shift_DCS, OWN**2 + INTERACTION**2)
    return Grids(
        paired=solved_DCPS[:, 0] - solved_DCPS[:, 1],
        gain=solved_DCPS[:, 0] - base_DP[..., None],
        true_paired=true_DCS[:, 0] - true_DCS[:, 1],
        true_gain=true_DCS[:, 0] - accuracy(np.zeros(1), 0.0),
    )


def solve(rng, shift_DCSR, problems, samples) -> np.ndarray:
    """Share of correct samples on the same validation problems for all: [D, C, P, S, R]."""
    datasets, conditions, _, _ = shift_DCSR.shape
    hard = CENTRE + DIFFICULTY * rng.normal(size=(datasets, 1, problems, 1, 1))
    hard = hard + OWN * rng.normal(size=(datasets, conditions, problems, 1, 1))
    logits = hard + shift_DCSR[:, :, None]
    return rng.binomial(samples, sigmoid(logits)) / samples


def solve_test(rng, shift_DCS, problems) -> tuple[np.ndarray, np.ndarray]:
    datasets, conditions, seeds = shift_DCS.shape
    hard_DP = CENTRE + DIFFICULTY * rng.normal(size=(datasets, problems))
    own = OWN * rng.normal(size=(datasets, conditions, problems, 1))
    own = own + INTERACTION * rng.normal(size=(datasets, conditions, problems, seeds))
    logits = hard_DP[:, None, :, None] + own + shift_DCS[:, :, None]
    solved = rng.binomial(SAMPLES, sigmoid(logits)) / SAMPLES
    return solved, rng.binomial(SAMPLES, sigmoid(hard_DP)) / SAMPLES


def accuracy(shift: np.ndarray, more: float) -> np.ndarray:
    """True mean accuracy over problems at a shift, by quadrature; `more` is variance of logits."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = np.sqrt(DIFFICULTY**2 + more)
    values = sigmoid(CENTRE + shift[..., None] + spread * points)
    return values @ weights / weights.sum()


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
