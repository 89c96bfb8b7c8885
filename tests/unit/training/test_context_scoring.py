from dataclasses import replace

import pytest
import torch

from sdcore.config import DistillConfig, TrainingConfig
from sdcore.errors import TrainingError
from sdcore.training.context_scoring import context_signals
from sdcore.training.trainer import Trainer
from tests.helpers.tiny import examples, llama

ROLLOUTS = examples(6)
HINTED = [each.teacher_prompt_ids for each in ROLLOUTS]
OWN = [each.prompt_ids for each in ROLLOUTS]
OTHER = [[2, 3, *prompt] for prompt in OWN]


def score(prompts, tokens_per_batch=40, policy=None):
    found = {}
    policy = llama() if policy is None else policy
    for context, index, signals in context_signals(policy, ROLLOUTS, prompts, tokens_per_batch):
        found[context, index] = signals
    return found


def trainer_signals(rollouts):
    condition = DistillConfig(objective="distill", context="reference", learning_rate=1e-3)
    return Trainer(llama(), condition, TrainingConfig(), total_steps=1, seed=0).signals(rollouts)


def test_each_context_is_scored_as_the_trainer_scores_its_first_step():
    found = score({"none": OWN, "hinted": HINTED, "other": OTHER})
    for context, prompts in (("hinted", HINTED), ("other", OTHER)):
        asked = [replace(r, teacher_prompt_ids=p) for r, p in zip(ROLLOUTS, prompts)]
        for index, expected in enumerate(trainer_signals(asked)):
            assert found[context, index].weight is expected.weight is None  # nothing is trained
            for name in ("student_logprob", "entropy", "advantage", "teacher_logprob", "kl"):
                values = getattr(expected, name)
                assert torch.allclose(getattr(found[context, index], name), values, atol=1e-5)


def test_the_student_is_scored_once_and_is_the_same_under_every_context():
    found = score({"hinted": HINTED, "other": OTHER})
    for index in range(len(ROLLOUTS)):
        hinted, other = found["hinted", index], found["other", index]
        assert torch.equal(hinted.student_logprob, other.student_logprob)
        assert not torch.equal(hinted.teacher_logprob, other.teacher_logprob)


def test_a_rollout_without_a_context_leaves_the_others_as_they_are():
    some = [HINTED[0], None, *HINTED[2:]]
    found, full = score({"hinted": some}), score({"hinted": HINTED})
    assert {index for _, index in found} == {0, 2, 3, 4, 5}
    for key, signals in found.items():
        assert torch.allclose(signals.kl, full[key].kl, atol=1e-5)
    assert score({"hinted": [None] * 6}) == {}


def test_the_null_context_has_no_signal():
    for signals in score({"none": OWN}).values():
        assert signals.kl.abs().max() < 1e-6 and signals.advantage.abs().max() < 1e-6


def test_no_feedback_to_a_thinking_teacher_has_a_signal():
    """Without a context, but with a prompt of another thinking mode."""
    for signals in score({"none": OTHER}).values():
        assert signals.kl.max() > 1e-3


def test_a_teacher_that_is_not_the_student_fails_the_null_check():
    """Weights that move after the student's pass (the third, after two that probe the head)."""
    policy, passes = llama(), []

    def move(*_):
        passes.append(1)
        if len(passes) == 3:
            policy.model.embed_tokens.weight.add_(torch.linspace(0, 1, 32)[:, None])

    policy.model.register_forward_hook(move)
    with pytest.raises(TrainingError, match="differ on the same prompt"):
        score({"none": OWN}, policy=policy)


def test_what_does_not_fit_is_refused_rather_than_cut():
    with pytest.raises(TrainingError, match="longer than the model's context"):
        score({"long": [[2] * 64, *HINTED[1:]]})
