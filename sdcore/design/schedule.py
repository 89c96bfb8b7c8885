"""Successive halving, its upper bound in sampled tokens, and the search that fits into a budget.

The schedule is that of Jamieson and Talwalkar (arXiv 1502.07943), with rungs that are checkpoints
of one training: a candidate that stays goes on from its last checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdcore.analysis.teacher_ability import MASKS
from sdcore.config import Experiment
from sdcore.errors import ConfigError
from sdcore.schedule import checkpoint_rounds

FEWEST = 2  # candidates of a rung: one alone is compared with nothing


@dataclass(frozen=True)
class Rung:
    """A short run: so many candidates are trained up to `rounds`, and the best `keeps` stay."""

    number: int  # from 1; 0 is the preflight
    rounds: int  # since the base, those of earlier rungs included
    candidates: int
    keeps: int


def halving(entrants: int, eta: int, rungs: int, rounds: int) -> tuple[Rung, ...]:
    """Return the rungs for so many candidates.

    A rung keeps one in `eta` of its candidates (rounded up) but at least two, and the last keeps
    one. The first has `rounds` // eta^(rungs − 1) rounds, every other eta times those of the one
    before it; there are fewer rungs where that would be less than one round.

    Args:
        entrants: candidates of the first rung, at least 2.
        eta: at least 2.
        rungs: at most.
        rounds: of the last rung, at most.
    """
    while rounds // eta ** (rungs - 1) == 0:
        rungs -= 1
    first, made, left = rounds // eta ** (rungs - 1), list[Rung](), entrants
    for number in range(1, rungs + 1):
        keeps = 1 if number == rungs else min(left, max(FEWEST, -(-left // eta)))
        made.append(Rung(number, first * eta ** (number - 1), left, keeps))
        left = keeps
    return tuple(made)


def preflight_tokens(experiment: Experiment, contexts: int) -> int:
    """Most tokens that the preflight and the base's validation sample.

    Args:
        experiment: the search.
        contexts: of the preflight, the null check included, once for each prompt of the critic.
    """
    diagnose = experiment.diagnose
    starts = len(MASKS)  # one of each mask's mixed policy
    per_problem = diagnose.rollouts + starts * contexts * diagnose.teacher_samples
    branches = diagnose.problems * contexts * diagnose.rollouts * diagnose.branches
    sampled = diagnose.problems * per_problem + 2 * branches + _validation(experiment)
    sampled += _band(experiment, "train", "validation")
    return experiment.sampling.max_new_tokens * sampled + branches  # and a forced token each


def rung_tokens(experiment: Experiment, rung: Rung, before: int) -> int:
    """Most tokens that a rung samples, where its candidates come with `before` rounds."""
    trained = _trained(experiment, rung.rounds - before)
    runs = rung.candidates * len(experiment.seeds)
    return experiment.sampling.max_new_tokens * runs * (trained + _validation(experiment))


def confirmation_tokens(experiment: Experiment) -> int:
    """Most tokens that an ordinary run of the experiment samples: training and all its scores."""
    scored = _validation(experiment) + experiment.problems.test * experiment.evaluation.samples
    training, sampled = experiment.training, scored
    for condition in experiment.conditions.values():
        trained = training.rounds * training.questions_per_round * condition.group_size
        checkpoints = len(checkpoint_rounds(experiment, condition))
        sampled += len(experiment.seeds) * (trained + checkpoints * scored)
    sampled += _band(experiment, "train", "validation", "test")
    return experiment.sampling.max_new_tokens * sampled


@dataclass(frozen=True)
class CriticBound:
    """Upper bound of what a stage asks of a language model as critic.

    Attributes:
        critiques: made, each with all of its attempts.
        written: tokens that the critic may write, thinking included.
        read: tokens that it reads, estimated at four characters each.
        cost: of both, by the critic's prices.
    """

    critiques: int
    written: int
    read: int
    cost: float

    @property
    def tokens(self) -> int:
        """Tokens that it reads and writes."""
        return self.read + self.written


def critic_bounds(
    search: Experiment,
    confirmations: Sequence[Experiment],
    rungs: Sequence[Rung],
    read: Mapping[str, Sequence[int]],
) -> dict[str, CriticBound]:
    """Return the bound of each stage, and in the preflight of each prompt; none without an LLM.

    Every rollout that is trained on counts as criticised. A band's problems, which the critic may
    have to solve, are not counted.

    Args:
        search: the candidates as conditions.
        confirmations: the runs that may compare a winner with the baseline.
        rungs: the short runs.
        read: tokens of the longest request about a trace, by the name of the prompt; one number
            per model that the critic asks, each of which may have to judge every trace.
    """
    models = search.critic.models if search.critic else ()
    if not models:
        return {}

    def bound(critiques: int, lengths: Sequence[int]) -> CriticBound:
        written = heard = cost = 0.0
        for model, length in zip(models, lengths, strict=True):
            asked = critiques * model.attempts
            written += asked * model.max_tokens
            heard += asked * length
            cost += model.price(asked * length, asked * model.max_tokens)
        return CriticBound(critiques, int(written), int(heard), cost)

    frozen = search.diagnose.problems * search.diagnose.rollouts
    found = {f"preflight, {name}": bound(frozen, length) for name, length in read.items()}
    longest, before = [max(lengths) for lengths in zip(*read.values(), strict=True)], 0
    for rung in rungs:
        trained = _trained(search, rung.rounds - before) * rung.candidates * len(search.seeds)
        found[stage_of(rung.number, rungs)] = bound(trained, longest)
        before = rung.rounds
    trained = max(
        _trained(run, run.training.rounds) * len(run.conditions) * len(run.seeds)
        for run in confirmations
    )
    found["confirmation"] = bound(trained, longest)
    return found


def stage_bounds(bounds: Mapping[str, CriticBound]) -> dict[str, int]:
    """Return the most tokens that the critic reads and writes, by stage, over prompts."""
    found = dict[str, int]()
    for name, bound in bounds.items():
        stage = name.partition(",")[0]
        found[stage] = found.get(stage, 0) + bound.tokens
    return found


def _trained(experiment: Experiment, rounds: int) -> int:
    """Rollouts that one condition and seed is trained on, at most."""
    group = max(condition.group_size for condition in experiment.conditions.values())
    return rounds * experiment.training.questions_per_round * group


@dataclass(frozen=True)
class Plan:
    """A schedule, and the most tokens that each stage samples, by its name."""

    rungs: tuple[Rung, ...]
    bounds: Mapping[str, int]

    @property
    def bound(self) -> int:
        """The most tokens that the search samples."""
        return sum(self.bounds.values())


def plan(search: Experiment, confirmations: Sequence[Experiment], contexts: int) -> Plan:
    """Return the largest search whose upper bound fits into `design.max_tokens`.

    It is made smaller by letting fewer candidates in; at least two stay.

    Args:
        search: the candidates as conditions.
        confirmations: the runs that may compare a winner with the baseline; the dearest counts.
        contexts: of the preflight, the null check included.

    Raises:
        ConfigError: the smallest search does not fit.
    """
    design, most = search.design, search.design.max_tokens
    entrants = min(len(search.conditions), design.eta**design.rungs)
    plans = [_plan(search, confirmations, contexts, n) for n in range(entrants, FEWEST - 1, -1)]
    fitting = [each for each in plans if most is None or each.bound <= most]
    if fitting:
        return fitting[0]
    raise ConfigError(
        "the budget does not allow the smallest search",
        got=f"{most} tokens",
        expected=f"at least {plans[-1].bound}, the most that it can sample: "
        + ", ".join(f"{stage} {tokens}" for stage, tokens in plans[-1].bounds.items()),
        where="design.max_tokens",
        fix="raise it, or make the search smaller: training.rounds, design.rungs, "
        "design.confirm_seeds, evaluation.samples, sampling.max_new_tokens",
    )


def _plan(
    search: Experiment, confirmations: Sequence[Experiment], contexts: int, entrants: int
) -> Plan:
    design = search.design
    rungs = halving(entrants, design.eta, design.rungs, confirmations[0].training.rounds)
    before = [0, *(rung.rounds for rung in rungs)]
    bounds = {"preflight": preflight_tokens(search, contexts)}
    for rung, start in zip(rungs, before, strict=False):
        bounds[stage_of(rung.number, rungs)] = rung_tokens(search, rung, start)
    bounds["confirmation"] = max(confirmation_tokens(run) for run in confirmations)
    return Plan(rungs, bounds)


def stage_of(rung: int, rungs: Sequence[Rung]) -> str:
    """Name of a rung's number: the preflight before the first, the confirmation after the last."""
    if rung == 0:
        return "preflight"
    return f"rung {rung}" if rung <= len(rungs) else "confirmation"


def _validation(experiment: Experiment) -> int:
    return experiment.problems.validation * experiment.evaluation.validation_samples


def _band(experiment: Experiment, *splits: str) -> int:
    """Rollouts that measure which problems are in the band."""
    band = experiment.problems.band
    return band.samples * sum(experiment.problems.counts[each] for each in splits) if band else 0
