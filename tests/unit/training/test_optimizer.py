import pytest
import torch
from torch import nn

from sdcore.config import TrainingConfig
from sdcore.training.optimizer import Optimizer, learning_rate


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # 2 warm-up steps, then 4 steps at progress 0, 1/4, 1/2, 3/4
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),  # (1 + cos(pi progress)) / 2
    ],
)
def test_schedules_by_hand(schedule, rates):
    training = TrainingConfig(warmup_steps=2, schedule=schedule)
    assert [learning_rate(s, 6, 1.0, training) for s in range(6)] == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_longer_than_all_steps_ends_at_the_peak(schedule):
    training = TrainingConfig(warmup_steps=100, schedule=schedule)
    rates = [learning_rate(step, 4, 0.8, training) for step in range(4)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert learning_rate(0, 1, 0.8, training) == 0.8


def weights():
    return {"matrix": nn.Parameter(torch.ones(2, 2)), "vector": nn.Parameter(torch.ones(2))}


def pull(these, gradient):
    for weight in these.values():
        weight.grad = torch.full_like(weight, gradient)


def test_first_step_moves_by_the_rate_against_the_sign():
    these = weights()
    optimizer = Optimizer(these, 0.1, TrainingConfig(), 10)
    pull(these, -3.0)
    assert optimizer.apply() == 0.1
    for weight in these.values():
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, 1.1))
        assert weight.grad is None


def test_decay_is_for_matrices_only():
    these = weights()
    optimizer = Optimizer(these, 0.1, TrainingConfig(weight_decay=0.5), 10)
    pull(these, 0.0)
    optimizer.apply()
    assert these["matrix"].detach().unique().tolist() == pytest.approx([0.95])  # 1 - 0.1 * 0.5
    assert these["vector"].detach().unique().tolist() == [1]


def test_clip_gives_the_norm_before_and_bounds_it_after():
    these = weights()
    pull(these, 2.0)  # norm 2 * sqrt(6)
    assert Optimizer(these, 0.1, TrainingConfig(max_grad_norm=1.0), 10).clip() == pytest.approx(
        4.898979
    )
    squares = sum(float(weight.grad.square().sum()) for weight in these.values())
    assert squares == pytest.approx(1, abs=1e-4)


def test_restored_optimizer_goes_on_bit_for_bit():
    training = TrainingConfig(schedule="cosine", weight_decay=0.1)
    these, those = weights(), weights()
    first, second = Optimizer(these, 0.1, training, 10), Optimizer(those, 0.1, training, 10)
    for gradient in (1.0, -0.3):
        pull(these, gradient)
        first.apply()
    for name, weight in those.items():
        weight.data.copy_(these[name].data)
    second.restore({name: moment.clone() for name, moment in first.state().items()}, first.step)
    for gradient in (0.7, 0.2):
        for optimizer, its in ((first, these), (second, those)):
            pull(its, gradient)
            optimizer.apply()
    assert all(torch.equal(these[name], those[name]) for name in these)
