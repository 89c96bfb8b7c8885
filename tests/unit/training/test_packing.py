"""Packed sequences beside the same ones padded, and each alone."""

from copy import deepcopy

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sdcore.config import DistillConfig, TrainingConfig
from sdcore.models import policies
from sdcore.training import packing
from sdcore.training.batches import pack
from sdcore.training.head import head_input, unwrap_peft
from sdcore.training.packing import PACKED
from sdcore.training.teacher import trained
from sdcore.training.trainer import Trainer
from tests.helpers.tiny import LORA, MODELS, examples, llama, qwen

MODELS_THAT_PACK = {
    "llama": lambda: llama(num_key_value_heads=2),
    "grouped": lambda: llama(num_key_value_heads=1),
    "qwen2": lambda: qwen(Qwen2ForCausalLM, Qwen2Config),
    "qwen3": lambda: qwen(Qwen3ForCausalLM, Qwen3Config),
}
PAIR = pack([[3, 4], [5]], [[6, 7, 8], [9]])


def packing_on(model):
    """The model with packing turned on, as it is on a GPU."""
    unwrap_peft(model).set_attn_implementation(PACKED)
    return model


def test_a_row_by_hand():
    inputs = packing.in_a_row(PAIR).inputs
    assert inputs["input_ids"].tolist() == [[3, 4, 6, 7, 8, 5, 9]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert inputs["cu_seq_lens_q"].tolist() == [0, 5, 7] and inputs["max_length_q"] == 5
    assert packing.in_a_row(PAIR).positions_T.tolist() == [1, 2, 3, 5]


def test_a_rectangle_by_hand():
    layout = packing.in_a_rectangle(PAIR)
    assert layout.inputs["input_ids"].tolist() == [[3, 4, 6, 7, 8], [5, 9, 0, 0, 0]]
    assert layout.positions_T.tolist() == [1, 2, 3, 5]


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS_THAT_PACK)
def test_no_sequence_sees_another(name):
    model = MODELS_THAT_PACK[name]()
    assert packing.can_pack(model)
    alone = [head_input(model, pack(*pair)).hidden_TD for pair in (([[3, 4]], [[6, 7, 8]]),
                                                                   ([[5]], [[9]]))]  # fmt: skip
    both = head_input(packing_on(model), PAIR).hidden_TD
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize(
    ("name", "checkpointing", "lora"),
    [
        ("llama", True, None),
        ("grouped", False, LORA),
        ("qwen2", True, LORA),
        ("qwen3", False, None),
    ],
)
def test_a_step_is_that_of_padded_sequences(name, checkpointing, lora):
    base = MODELS_THAT_PACK[name]()
    made, condition = [], DistillConfig(objective="distill", context="none", learning_rate=1e-3)
    for prepare, budget in ((lambda m: m, 16384), (packing_on, 40)):
        model = prepare(deepcopy(base))
        if lora:
            model = policies.attach_lora(model, lora, 0)
        training = TrainingConfig(
            lora=lora, activation_checkpointing=checkpointing, tokens_per_microbatch=budget
        )
        made.append(Trainer(model, deepcopy(condition), training, total_steps=9, seed=0))
    padded, packed = (trainer.step(examples()) for trainer in made)
    assert padded.padding_share > 0 and packed.padding_share == 0
    assert packed.loss == pytest.approx(padded.loss, rel=1e-4)
    assert packed.grad_norm == pytest.approx(padded.grad_norm, rel=1e-4)
    for ours, theirs in zip(packed.signals, padded.signals, strict=True):
        torch.testing.assert_close(ours.kl, theirs.kl, rtol=1e-4, atol=1e-6)
    ours, theirs = (trained(trainer.model) for trainer in reversed(made))
    for weight_name, weight in theirs.items():
        torch.testing.assert_close(ours[weight_name], weight, rtol=1e-3, atol=1e-5)


def test_other_attention_is_padded():
    windows = qwen(Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, max_window_layers=0)
    narrow = llama(head_dim=4)  # the kernel's heads are multiples of 8 wide
    eager = llama()
    eager.set_attn_implementation("eager")
    special = [MODELS[name]() for name in ("soft-capped", "with sinks", "multiplied", "divided")]
    for model in (windows, narrow, eager, *special):
        assert not packing.can_pack(model)


def test_a_processor_pads_and_a_checkpoint_does_not_name_the_attention(tmp_path):
    model = llama()
    packing.turn_on(model)
    assert not packing.is_on(model)
    packing_on(model).config.save_pretrained(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text()


def test_a_gpus_kernel_gets_one_type_and_gives_gradients():
    """On the device without memory, where PyTorch checks a call and its shapes only."""
    query = torch.empty(1, 4, 7, 8, device="meta", requires_grad=True)  # widened by a norm
    key, value = (
        torch.empty(1, 2, 7, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2)
    )
    starts = torch.empty(3, device="meta", dtype=torch.int32)
    output, _ = packing.packed_attention(
        None, query, key, value, None, scaling=0.3, cu_seq_lens_q=starts, max_length_q=5
    )
    assert output.shape == (1, 7, 4, 8) and output.dtype == torch.bfloat16
    output.sum().backward()
    assert query.grad.dtype == torch.float32 and key.grad.shape == value.grad.shape == value.shape
