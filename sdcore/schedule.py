"""The schedule of a run: which questions a round asks, with which random numbers, what is scored.

All of it depends on the experiment's settings and the seed only, never on the condition, so that
every condition meets the same questions in the same order with the same random numbers.
"""

from collections.abc import Sequence
from enum import StrEnum

from sdcore.config import Condition, Experiment
from sdcore.store.schema import content_key

PROBES = 16
"""Validation rollouts of the base on which every round measures the drift from it."""


class Stage(StrEnum):
    """The stages of a round, in order; each depends on those before it."""

    sample, align, distill, evaluate = "sample", "align", "distill", "evaluate"


def round_questions(problem_ids: Sequence[str], count: int, round_: int, seed: int) -> list[str]:
    """The `count` distinct questions of a round; each epoch is a fresh shuffle.

    Rounds do not span epochs: what an epoch has left over (fewer than `count`) waits for the next.
    """
    import numpy as np  # noqa: PLC0415 - a tenth of a second, and the command needs `Stage` alone

    epoch, index = divmod(round_, len(problem_ids) // count)
    order = np.random.default_rng([seed, epoch]).permutation(len(problem_ids))
    return [problem_ids[i] for i in order[index * count : (index + 1) * count]]


def sampling_seed(seed: int, purpose: str, round_: int, problem_id: str, sample_index: int) -> int:
    """Seed of one sample's random numbers: 63 bits derived from what the sample is."""
    return int(content_key(seed, purpose, round_, problem_id, sample_index)[:16], 16) >> 1


def lineages(experiment: Experiment) -> list[tuple[str, int]]:
    """Conditions and seeds in the order in which they train.

    Seed by seed, and of each seed the condition with the most rollouts first: the short ones at the
    end keep several workers busy to the last (Graham 1969, "longest processing time first").
    """
    sizes = {name: condition.group_size for name, condition in experiment.conditions.items()}
    longest_first = sorted(sizes, key=lambda name: -sizes[name])
    return [(name, seed) for seed in experiment.seeds for name in longest_first]


def checkpoint_rounds(experiment: Experiment, condition: Condition) -> tuple[int, ...]:
    """Rounds after which the policy is scored, in order.

    Every `evaluation.every` rounds, the last round, and the round at which this condition has
    sampled as many rollouts as the cheapest condition samples in all (the equal-budget comparison).
    Conditions that the run was not started with do not count among these: what is trained already
    keeps its rounds.
    """
    rounds, every = experiment.training.rounds, experiment.evaluation.every
    at_start = experiment.conditions.keys() - experiment.later
    cheapest = min(experiment.conditions[name].group_size for name in at_start)
    equal_budget = min(rounds, max(1, rounds * cheapest // condition.group_size))
    return tuple(sorted({*range(every, rounds + 1, every), equal_budget, rounds}))


def signal_rounds(experiment: Experiment) -> frozenset[int]:
    """Rounds whose token signals are stored: the first and the last."""
    return frozenset({0, experiment.training.rounds - 1})
