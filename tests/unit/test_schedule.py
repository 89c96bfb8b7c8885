import pytest

from sdcore.config import load_experiment
from sdcore.schedule import (
    checkpoint_rounds,
    lineages,
    round_questions,
    sampling_seed,
    signal_rounds,
)
from tests.helpers.paths import QUICKSTART

IDS = [f"p{number}" for number in range(10)]


def test_an_epoch_asks_each_question_once_and_the_next_one_in_another_order():
    first = [q for r in range(5) for q in round_questions(IDS, 2, r, seed=0)]
    second = [q for r in range(5, 10) for q in round_questions(IDS, 2, r, seed=0)]
    assert sorted(first) == sorted(second) == sorted(IDS)
    assert first != second


def test_no_round_asks_a_question_twice_even_when_epochs_do_not_divide():
    for round_ in range(12):
        assert len(set(round_questions(IDS, 4, round_, seed=3))) == 4


def test_the_schedule_depends_on_the_seed():
    assert round_questions(IDS, 5, 0, seed=0) != round_questions(IDS, 5, 0, seed=1)


@pytest.mark.parametrize("change", [(1, "train", 0, "p", 0), (0, "test", 0, "p", 0),
                                    (0, "train", 1, "p", 0), (0, "train", 0, "q", 0),
                                    (0, "train", 0, "p", 1)])  # fmt: skip
def test_every_sample_has_random_numbers_of_its_own(change):
    seed = sampling_seed(0, "train", 0, "p", 0)
    assert 0 <= seed < 2**63
    assert seed == sampling_seed(0, "train", 0, "p", 0) != sampling_seed(*change)


def test_checkpoints_include_the_last_round_and_the_equal_budget_round():
    # 40 rounds, every 16; GRPO's 8 rollouts a question spend the cheapest condition's
    # 40 x 1 rollouts a question after 40 / 8 = 5 rounds.
    experiment = load_experiment(QUICKSTART, ["training.rounds=40", "evaluation.every=16"])
    conditions = experiment.conditions
    assert checkpoint_rounds(experiment, conditions["grpo"]) == (5, 16, 32, 40)
    assert checkpoint_rounds(experiment, conditions["reference"]) == (16, 32, 40)
    assert signal_rounds(experiment) == {0, 39}


def test_of_each_seed_the_condition_with_the_most_rollouts_trains_first():
    changes = ["seeds=[3,1]", "conditions.step_aligned.group_size=2"]
    experiment = load_experiment(QUICKSTART, changes)
    sizes = {name: condition.group_size for name, condition in experiment.conditions.items()}
    assert sizes == {"grpo": 8, "reference": 1, "step_aligned": 2}
    order = ["grpo", "step_aligned", "reference"]
    assert lineages(experiment) == [(name, seed) for seed in (3, 1) for name in order]
