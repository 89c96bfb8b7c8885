"""A trainer's step on a GPU against the same on the CPU, and going on from a checkpoint."""

from copy import deepcopy

import pytest
import torch

from sdcore.config import DistillConfig, GrpoConfig, TrainingConfig
from sdcore.models import policies, weight_files
from sdcore.training import packing
from sdcore.training.trainer import Trainer
from tests.helpers.tiny import LORA, adapted, examples, llama

CONDITIONS = {
    "forward KL": DistillConfig(objective="distill", context="none", learning_rate=1e-3),
    "reward": GrpoConfig(objective="grpo", learning_rate=1e-3, kl_coefficient=0.1),
}


def trainer(device, condition, *, lora=True, checkpointing=False):
    model = (adapted() if lora else llama()).to(device)
    training = TrainingConfig(lora=LORA if lora else None, activation_checkpointing=checkpointing)
    return Trainer(model, deepcopy(condition), training, total_steps=10, seed=0)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CONDITIONS)
def test_steps_are_those_of_the_cpu(name, checkpointing, lora):
    made = [
        trainer(device, CONDITIONS[name], lora=lora, checkpointing=checkpointing)
        for device in ("cpu", "cuda")
    ]
    for _ in range(2):
        exact, ours = (each.step(examples()) for each in made)
        assert ours.loss == pytest.approx(exact.loss, rel=1e-4, abs=1e-6)
        assert ours.grad_norm == pytest.approx(exact.grad_norm, rel=1e-4)
        for mine, theirs in zip(ours.signals, exact.signals, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                if a is not None:
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    whole = trainer("cuda", CONDITIONS["forward KL"])
    for _ in range(2):
        whole.step(examples())
    whole.save(tmp_path / "checkpoint")
    resumed = trainer("cuda", CONDITIONS["forward KL"])
    resumed.load(tmp_path / "checkpoint")
    updates = [each.step(examples()) for each in (whole, resumed)]
    # Bit for bit but for kernels that add up in any order, which are within a few roundings.
    assert updates[0].loss == pytest.approx(updates[1].loss, rel=1e-6)
    ours, theirs = (weight_files.gathered(each.model) for each in (resumed, whole))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_packed_sequences_give_the_step_of_padded_ones(lora, checkpointing, monkeypatch):
    made = []
    for packed in (False, True):
        with monkeypatch.context() as patched:
            if not packed:
                patched.setattr(packing, "can_pack", lambda model: False)
            model = llama(num_key_value_heads=1).bfloat16().to("cuda")
            if lora:
                model = policies.attach_lora(model, LORA, 0)
            training = TrainingConfig(
                lora=LORA if lora else None, activation_checkpointing=checkpointing
            )
            condition = deepcopy(CONDITIONS["forward KL"])
            made.append(Trainer(model, condition, training, total_steps=10, seed=0))
    padded, packed = (each.step(examples()) for each in made)
    assert padded.padding_share > 0 and packed.padding_share == 0
    assert packed.loss == pytest.approx(padded.loss, rel=2e-2)  # of bfloat16
    assert packed.grad_norm == pytest.approx(padded.grad_norm, rel=5e-2)
