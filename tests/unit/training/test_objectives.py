import pytest
import torch

from sdcore.config import (
    OBJECTIVES,
    ConditionSettings,
    DistillConfig,
    GrpoConfig,
    TrainingConfig,
    WarmupConfig,
    objective,
)
from sdcore.errors import ConfigError, TrainingError
from sdcore.training.objectives import (
    Objective,
    against_teacher,
    differentiated,
    group_signals,
    objective_of,
)
from sdcore.training.trainer import Trainer
from tests.unit.training.test_trainer import examples, llama

DISTILL = DistillConfig(objective="distill", context="none", learning_rate=1e-2)
GRPO = GrpoConfig(objective="grpo", learning_rate=1e-2, group_size=2)


class OwnSettings(ConditionSettings):
    """Of the objective below."""

    context: str = "none"


class _ByAutograd(Objective):
    """The forward KL, with its gradient by autograd."""

    @property
    def teacher(self):
        return DISTILL.teacher

    def loss(self, examples, device):
        def forward_kl(log_q_NV, chunk):
            t_NV = chunk.pair.t_NV
            return (t_NV * (t_NV.log() - log_q_NV)).sum(1)

        return differentiated(forward_kl)

    def advantage(self, examples, scores):
        return against_teacher(scores)


own = objective(OwnSettings)(_ByAutograd)


def test_an_objective_of_ones_own_trains_as_the_built_in_one_of_the_same_loss():
    mine = OwnSettings(objective=f"{__name__}:own", learning_rate=1e-2)
    updates = [
        Trainer(llama(), settings, TrainingConfig(), total_steps=9, seed=0).step(examples())
        for settings in (DISTILL, mine)
    ]
    assert updates[1].loss == pytest.approx(updates[0].loss, rel=1e-4)
    assert updates[1].grad_norm == pytest.approx(updates[0].grad_norm, rel=1e-3)
    for theirs, ours in zip(*(update.signals for update in updates), strict=True):
        torch.testing.assert_close(ours.advantage, theirs.advantage)


def test_what_differs_by_objective():
    sampled = objective_of(GRPO, temperature=0.7)
    assert (sampled.prompted, sampled.teacher, sampled.remembers) == (False, None, True)
    assert not objective_of(GRPO).remembers
    reference = objective_of(GRPO.model_copy(update={"kl_coefficient": 0.1})).teacher
    assert reference is not None and reference.kind == "frozen"
    assert objective_of(DISTILL).prompted and objective_of(DISTILL).teacher == DISTILL.teacher
    warmup = objective_of(WarmupConfig(steps=1, learning_rate=1e-3))
    assert (warmup.prompted, warmup.teacher, warmup.by_sequence) == (False, None, False)


def test_advantages_of_groups_are_of_neighbours_and_graded_rewards_count():
    advantages, silent = group_signals(objective_of(GRPO), [0.0, 1.0, 0.25, 0.25, 0.5, 0.25])
    root = 0.5**0.5  # (x - mean) / deviation of two different numbers, whatever they are
    assert advantages == pytest.approx([-root, root, 0.0, 0.0, root, -root])
    assert silent == 1
    assert group_signals(objective_of(DISTILL), [0.0, 1.0, 1.0]) == ([None] * 3, 0)


def test_what_is_no_objective_is_refused():
    with pytest.raises(ConfigError, match="needs a settings model"):
        objective(dict)
    settings = OwnSettings(objective=f"{__name__}:wrong", learning_rate=1e-2)
    with pytest.raises(TrainingError, match="not an objective"):
        objective_of(settings)


wrong = objective(OwnSettings)(dict)


def test_every_built_in_objective_says_what_it_is():
    for entry in OBJECTIVES.entries().values():
        assert entry.about and issubclass(entry.settings, ConditionSettings)
