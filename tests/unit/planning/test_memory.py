"""Bytes counted by hand."""

from dataclasses import replace

import pytest
import torch

from sdcore.config import DistillConfig, GrpoConfig, TrainingConfig, WarmupConfig
from sdcore.planning import memory
from sdcore.planning.machines import GIB
from sdcore.planning.memory import auto_tokens, chunk_bytes, logit_bytes, logit_rows, token_bytes
from sdcore.planning.shapes import KNOWN, Shape
from sdcore.system.memory import free_bytes
from sdcore.training import projection
from sdcore.training.trainer import Trainer
from tasks.run import live
from tests.helpers.tiny import LORA as ADAPTER
from tests.helpers.tiny import adapted, examples

QWEN = KNOWN["Qwen/Qwen3-1.7B"]
LORA = TrainingConfig.model_validate({"lora": {"rank": 64}, "activation_checkpointing": True})


def distill(**changes):
    return DistillConfig.model_validate(
        {"objective": "distill", "context": "none", "learning_rate": 1e-5} | changes
    )


GRPO = GrpoConfig(objective="grpo", learning_rate=1e-5)


@pytest.mark.parametrize(
    ("objective", "dtype", "temperature", "expected"),
    [
        (distill(), "bfloat16", 1.0, 4 + 4 + 2),  # logits of student and teacher, and the gradient
        (distill(divergence="jsd"), "float32", 1.0, 4 + 4 + 4),
        (distill(teacher={"kind": "trust_region"}), "bfloat16", 1.0, 4 + 4 + 4),  # two teachers
        (distill(temperature=0.7), "bfloat16", 1.0, 6 * 4),
        (distill(support="teacher"), "bfloat16", 1.0, 6 * 4),
        (GRPO, "bfloat16", 1.0, 3 * 4),  # logits, log-probs, probs
        (GRPO, "bfloat16", 1.1, 4 * 4),
        (GRPO.model_copy(update={"kl_coefficient": 0.1}), "bfloat16", 1.1, 6 * 4),
        (WarmupConfig(steps=2, learning_rate=1e-3), "bfloat16", 1.1, 3 * 4),
    ],
)
def test_buffers_of_logits_on_a_gpu(objective, dtype, temperature, expected):
    assert logit_bytes(objective, dtype, temperature, gpu=True) == expected
    assert logit_bytes(objective, dtype, temperature, gpu=False) == 6 * 4


def test_a_chunk_of_logits():
    """2^26 / 151,936 = 441 rows, of which 384 are whole tiles; 10 bytes: 0.47 of [2048, V]."""
    assert logit_rows(151_936, gpu=True) == 384
    assert logit_rows(151_936, gpu=False) == 128
    assert logit_rows(133, gpu=False) == 31_536
    size = chunk_bytes(LORA, "bfloat16", QWEN, 10, gpu=True)
    assert size == 384 * 151_936 * 10 == 583_434_240
    assert size / (4 * 2048 * 151_936) == pytest.approx(0.469, abs=1e-3)


def test_buffers_are_those_of_the_loss():
    """Planning loads no torch, and has these sizes of its own."""
    assert {True: projection.ELEMENTS["cuda"], False: projection.ELEMENTS["cpu"]} == memory.CHUNK
    assert (memory.TILE, memory.HELD) == (projection.MIN_ROWS, projection.HELD)


def test_a_trained_head_holds_gradients():
    """On a GPU: of 2^29 logits, 3,533 tokens, or of 16,384 tokens where there are fewer logits."""
    full, tiny = TrainingConfig(lora=None), replace(QWEN, vocabulary=100)
    chunk = chunk_bytes(LORA, "bfloat16", QWEN, 10, gpu=True)
    assert chunk_bytes(full, "bfloat16", QWEN, 10, gpu=True) == chunk + 2 * 2**29
    small = chunk_bytes(LORA, "float32", tiny, 12, gpu=True)
    assert chunk_bytes(full, "float32", tiny, 12, gpu=True) == small + 4 * 16_384 * 100
    on_cpu = (chunk_bytes(each, "float32", QWEN, 24, gpu=False) for each in (full, LORA))
    assert len(set(on_cpu)) == 1


def test_auto_fills_the_free_memory_with_a_power_of_two():
    """A position keeps 28 layers' inputs, one layer's activations, and four hidden states."""
    kept = 28 * 2048 * 2 + (18 * 2048 + 8 * 6144 + 10 * 2048 + 8 * 1024 + 30 * 64) + 4 * 4 * 2048
    assert token_bytes(LORA, "bfloat16", QWEN) == kept == 264_064

    def tokens(free):
        return auto_tokens(LORA, "bfloat16", QWEN, 10, free, gpu=True)

    # 0.9 * 4 GiB less the chunk's 0.54 GiB are 12,429 positions.
    assert tokens(4 * GIB) == 8192 == tokens(3.5 * GIB)
    exact = (16384 * kept + 583_434_240) / 0.9
    assert (tokens(exact + 1), tokens(exact - 300_000)) == (16384, 8192)
    assert (tokens(0), tokens(1000 * GIB)) == (1024, 16384)


def test_some_memory_is_free():
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50


def test_a_trainer_that_starts_takes_what_fits(monkeypatch):
    """Gradients and moments of the adapters come off first: 12 bytes for each of their weights."""
    model = adapted().get_base_model()
    training = TrainingConfig(lora=ADAPTER, tokens_per_microbatch="auto")
    shape = Shape.of(model.config.to_dict(), "tiny")
    needed = 12 * shape.lora_parameters(ADAPTER)
    fitting = 3000 * token_bytes(training, "float32", shape)
    logits = chunk_bytes(training, "float32", shape, 24, gpu=False)
    free = needed + (fitting + logits) * 2.15  # on a CPU: the allocator's holes take as much again
    monkeypatch.setattr(live, "free_bytes", lambda device: free)
    assert live.fitting_tokens(model, training, "float32", 24) == 2048
    monkeypatch.setattr(live, "free_bytes", lambda device: 100 * free)
    assert live.fitting_tokens(model, training, "float32", 24) == 16384


def test_a_step_waits_for_its_size():
    training = TrainingConfig(lora=ADAPTER, tokens_per_microbatch="auto")
    made = Trainer(adapted(), distill(), training, total_steps=2, seed=0)
    with pytest.raises(AssertionError, match="to be set"):
        made.step(examples())
    made.tokens_per_microbatch = 1024
    update = made.step(examples())
    fixed = training.model_copy(update={"tokens_per_microbatch": 1024})
    other = Trainer(adapted(), distill(), fixed, total_steps=2, seed=0).step(examples())
    assert update.loss == other.loss
