"""The halving schedule and its upper bound, by hand."""

import pytest

from sdcore.config import Experiment
from sdcore.design.schedule import (
    Rung,
    confirmation_tokens,
    critic_bounds,
    halving,
    plan,
    preflight_tokens,
    rung_tokens,
    stage_bounds,
    stage_of,
)
from sdcore.errors import ConfigError

TREE = {
    "name": "small",
    "seeds": [0, 1],
    "model": {"name": "builtin:tiny-solver"},
    "problems": {"source": "arithmetic", "train": 8, "validation": 5, "test": 7},
    "sampling": {"max_new_tokens": 10},
    "training": {"rounds": 4, "questions_per_round": 3},
    "evaluation": {"every": 2, "samples": 6, "validation_samples": 2},
    "diagnose": {"problems": 4, "rollouts": 2, "teacher_samples": 3},
    "design": {"rungs": 2, "eta": 2},
    "conditions": {
        name: {
            "objective": "distill", "context": "reference", "learning_rate": 1e-3, "group_size": 2,
        }
        for name in "abcd"
    },
}  # fmt: skip


def experiment(**sections):
    tree = TREE | {name: TREE.get(name, {}) | values for name, values in sections.items()}
    return Experiment.model_validate(tree)


@pytest.mark.parametrize(
    ("entrants", "eta", "rungs", "rounds", "expected"),
    [
        (8, 2, 3, 20, [(5, 8, 4), (10, 4, 2), (20, 2, 1)]),
        (5, 2, 3, 20, [(5, 5, 3), (10, 3, 2), (20, 2, 1)]),
        (2, 2, 3, 20, [(5, 2, 2), (10, 2, 2), (20, 2, 1)]),  # one alone is compared with nothing
        (9, 3, 2, 20, [(6, 9, 3), (18, 3, 1)]),  # 20 // 3 rounds, times 3
        (4, 2, 3, 3, [(1, 4, 2), (2, 2, 1)]),  # 3 // 4 is no round: a rung less
        (4, 2, 1, 7, [(7, 4, 1)]),
    ],
)
def test_a_rung_keeps_one_in_eta_and_trains_eta_times_as_long(
    entrants, eta, rungs, rounds, expected
):
    made = halving(entrants, eta, rungs, rounds)
    assert [(rung.rounds, rung.candidates, rung.keeps) for rung in made] == expected
    assert [rung.number for rung in made] == list(range(1, len(expected) + 1))


def test_the_bounds_count_every_sample_at_its_longest():
    # 4 problems x (2 rollouts + 5 contexts x 3 samples x 5 starts) + 5 x 2 of the base, x 10 tokens
    assert preflight_tokens(experiment(), contexts=5) == 10 * (4 * 77 + 10)
    # a branch continues twice, once after a forced token: 4 x 5 contexts x 2 rollouts x 3 branches
    branched = experiment(diagnose={"branches": 3})
    assert preflight_tokens(branched, contexts=5) == 10 * (4 * 77 + 10) + 120 * (2 * 10 + 1)
    # 3 candidates x 2 seeds x ((4 - 2) rounds x 3 questions x 2 + 5 x 2 on validation) x 10
    assert rung_tokens(experiment(), Rung(2, 4, 3, 1), before=2) == 10 * 6 * (12 + 10)
    # base and each checkpoint: 5 x 2 + 7 x 6 = 52; 4 conditions x 2 seeds x (24 + 2 checkpoints)
    assert confirmation_tokens(experiment()) == 10 * (52 + 8 * (4 * 3 * 2 + 2 * 52))


def test_the_critic_is_counted_for_each_prompt_and_stage():
    prices = {"price_in": 1, "price_out": 3}
    critic = {"kind": "llm", "model": "m", "attempts": 2, "max_tokens": 100} | prices
    search = experiment(critic=critic)
    rungs = (Rung(1, 2, 3, 2), Rung(2, 4, 2, 1))
    found = critic_bounds(search, [search], rungs, {"own": [50], "terse": [20]})
    # 4 problems x 2 rollouts; rung 1: 2 rounds x 3 questions x 2 x 3 candidates x 2 seeds, rung 2:
    # x 2 candidates; confirmation: 4 rounds x 3 x 2 x 4 conditions x 2 seeds
    assert {stage: each.critiques for stage, each in found.items()} == {
        "preflight, own": 8, "preflight, terse": 8, "rung 1": 72, "rung 2": 48,
        "confirmation": 192,
    }  # fmt: skip
    terse, first = found["preflight, terse"], found["rung 1"]
    assert (terse.written, terse.read, first.read) == (8 * 200, 8 * 40, 72 * 100)
    assert terse.cost == pytest.approx((1600 * 3 + 320) / 1e6)
    assert stage_bounds(found)["preflight"] == 2 * 8 * 200 + 8 * 2 * (50 + 20)
    assert critic_bounds(experiment(), [experiment()], rungs, {}) == {}


def test_each_model_of_a_cascade_may_have_to_judge_every_trace():
    small = {"kind": "llm", "model": "s", "attempts": 1, "max_tokens": 10, "price_out": 1}
    large = {"kind": "llm", "model": "l", "attempts": 3, "max_tokens": 100, "price_in": 2}
    search = experiment(critic={"kind": "cascade", "small": small, "large": large})
    found = critic_bounds(search, [search], (Rung(1, 2, 3, 2),), {"own": [50, 60]})
    first = found["preflight, own"]  # 8 rollouts
    assert (first.written, first.read) == (8 * (10 + 300), 8 * (50 + 180))
    assert first.cost == pytest.approx((80 + 2 * 8 * 180) / 1e6)


def test_a_band_is_counted_with_all_the_candidates_that_it_may_look_at():
    band = {"samples": 3, "candidates": 2.0}
    plain, banded = experiment(), experiment(problems={"band": band})
    # 2 x (8 train + 5 validation) problems x 3 samples x 10 tokens; with the 7 of test
    assert preflight_tokens(banded, 5) - preflight_tokens(plain, 5) == 10 * 3 * 2 * 13
    assert confirmation_tokens(banded) - confirmation_tokens(plain) == 10 * 3 * 2 * 20


def test_a_budget_lets_fewer_candidates_in_and_is_refused_below_two():
    # preflight 3180; per candidate: rung 1 2 seeds x (2 x 6 + 10) x 10 = 440, rung 2 as much
    whole = plan(experiment(), [experiment()], 5)
    assert [rung.candidates for rung in whole.rungs] == [4, 2]
    confirmation = whole.bounds["confirmation"]
    assert whole.bounds == {
        "preflight": 3180, "rung 1": 1760, "rung 2": 880, "confirmation": confirmation,
    }  # fmt: skip
    assert whole.bound == 5820 + confirmation
    exact = plan(experiment(design={"max_tokens": whole.bound}), [experiment()], 5)
    assert exact == whole
    less = plan(experiment(design={"max_tokens": whole.bound - 1}), [experiment()], 5)
    assert [rung.candidates for rung in less.rungs] == [3, 2] and less.bound == whole.bound - 440
    smallest = whole.bound - 2 * 440
    assert plan(experiment(design={"max_tokens": smallest}), [experiment()], 5).bound == smallest
    with pytest.raises(ConfigError, match=f"at least {smallest}") as raised:
        plan(experiment(design={"max_tokens": smallest - 1}), [experiment()], 5)
    assert raised.value.where == "design.max_tokens"


def test_the_dearest_of_the_confirmations_counts():
    """Beside 2 rollouts per question, 3 have one more checkpoint, at round 4 x 2 // 3 = 2."""

    def sized(*sizes):
        tree = {
            f"c{place}": TREE["conditions"]["a"] | {"group_size": size}
            for place, size in enumerate(sizes)
        }
        other = TREE | {"conditions": tree, "evaluation": TREE["evaluation"] | {"every": 3}}
        return Experiment.model_validate(other)

    alike, mixed = sized(3, 3), sized(2, 3)
    # checkpoints after rounds 3 and 4, in `mixed` of the second condition after round 2, too
    assert confirmation_tokens(alike) == 10 * (52 + 2 * 2 * (36 + 2 * 52))
    assert confirmation_tokens(mixed) == 10 * (52 + 2 * (24 + 2 * 52) + 2 * (36 + 3 * 52))
    bounds = plan(experiment(), [alike, mixed], 5).bounds
    assert bounds["confirmation"] == confirmation_tokens(mixed) > confirmation_tokens(alike)


def test_stages_have_names():
    rungs = halving(4, 2, 2, 4)
    names = [stage_of(number, rungs) for number in range(4)]
    assert names == ["preflight", "rung 1", "rung 2", "confirmation"]
