"""Memory of a vLLM server by hand: Qwen3-1.7B in bfloat16, 112 KiB of keys and values a token."""

from dataclasses import replace

import pytest

from sdcore.config import Experiment
from sdcore.planning.lengths import Lengths
from sdcore.planning.machines import CPU, GIB, named
from sdcore.planning.memory import (
    cache_room,
    memory_of,
    misfits,
    server_of,
    training_memory,
)
from sdcore.planning.serving import serving_of, starts_server
from sdcore.planning.shapes import KNOWN

QWEN = KNOWN["Qwen/Qwen3-1.7B"]
TOKEN = 2 * 28 * 8 * 128 * 2  # keys and values of 28 layers, 8 heads of 128, in 2 bytes: 112 KiB
LENGTHS = Lengths(prompt=452, shown=1100, response=1000, longest=2048, basis="given")
H100 = named("h100")


def made(*, engine=None, training=None) -> Experiment:
    return Experiment.model_validate({
        "name": "small", "model": {"name": "Qwen/Qwen3-1.7B", "dtype": "bfloat16"},
        "problems": {"source": "dataset", "name": "x", "train": 256, "validation": 8, "test": 8},
        "conditions": {
            "one": {"objective": "distill", "context": "reference", "learning_rate": 1e-5}
        },
        "training": {"questions_per_round": 256, "lora": {"rank": 64}} | (training or {}),
        "engine": {"kind": "vllm"} | (engine or {}),
    })  # fmt: skip


def server(experiment, machine=H100):
    serving = server_of(experiment, QWEN, machine, LENGTHS)
    assert serving is not None
    return serving


def test_the_cache_holds_the_requests_in_flight_and_no_more():
    """128 sequences of 452 + 2,048 tokens: 320,000 tokens, 34.2 GiB of which 79 have room."""
    serving = server(made(training={"activation_checkpointing": True}))
    assert serving.cache == 128 * 2500 * TOKEN == 36_700_160_000
    assert serving.held == 320_000 and serving.context_length == 40_960  # the model's own
    few = server(made(engine={"concurrency": 4}))
    assert few.cache == 40_960 * TOKEN  # 4 × 2,500 tokens are less than one longest sequence
    assert server(made(engine={"concurrency": 4, "context_length": 4096})).cache == 10_000 * TOKEN


def test_the_trainer_keeps_its_room():
    """With `auto` its activations get half of what is left, else those of its micro-batch."""
    experiment = made(engine={"concurrency": 4096}, training={"tokens_per_microbatch": "auto"})
    beside = training_memory(experiment, QWEN, 1, gpu=True)
    weights = 2 * QWEN.parameters
    assert beside.stays == weights + 4 * 69_730_304 + 12 * 69_730_304 + 0.6 * GIB
    half = (0.9 * 79 * GIB - weights - 3 * GIB - beside.stays) / 2
    serving = server(experiment)
    assert serving.cache == pytest.approx(half) and half / GIB == pytest.approx(30.0, abs=0.1)
    memory = memory_of(experiment, QWEN, H100, LENGTHS)
    assert memory.sampler == serving.total and memory.activations <= half
    fixed = made(engine={"concurrency": 4096}, training={"tokens_per_microbatch": 8192})
    # 28 layers of 116,608 bytes and four hidden states in float32; 10 bytes of 384 × V logits.
    activations = 8192 * (28 * 116_608 + 4 * 4 * 2048) + 583_434_240
    assert server(fixed).cache == pytest.approx(2 * half - activations)
    assert not misfits(fixed, QWEN, H100, LENGTHS, memory_of(fixed, QWEN, H100, LENGTHS))


def test_a_server_with_a_gpu_of_its_own_has_no_trainer_beside_it():
    experiment = made(engine={"concurrency": 4096})
    room = cache_room(experiment, QWEN, LENGTHS, 79 * GIB, None)
    assert room == pytest.approx(0.9 * 79 * GIB - 2 * QWEN.parameters - 3 * GIB)


def test_a_split_server_has_a_part_of_the_model_and_of_each_sequence_on_a_device():
    split = ["--tensor-parallel-size=4"]
    whole = server(made(engine={"concurrency": 8}))
    part = server(made(engine={"concurrency": 8, "arguments": split}))
    assert (part.weights, part.cache) == (whole.weights / 4, whole.cache / 4)
    assert part.held == whole.held


def test_what_the_file_sets_is_what_it_gets():
    serving = server(made(engine={"cache_gib": 5, "context_length": 4096}))
    assert (serving.cache, serving.context_length) == (5 * GIB, 4096)
    # 5 GiB are 46,811 tokens, more than the model takes; 1 GiB are 9,362, or 73 blocks of 128.
    assert server(made(engine={"cache_gib": 5})).context_length == 40_960
    assert server(made(engine={"cache_gib": 1})).context_length == 73 * 128
    assert server(made(), CPU).cache == 4 * GIB  # without a GPU
    assert not starts_server(made(engine={"urls": ["http://127.0.0.1:1"]}))


def test_its_share_of_the_gpu_is_what_vllm_looks_for_before_it_starts():
    serving = replace(server(made()), weights=4 * GIB, cache=25 * GIB)
    assert serving.total == 32 * GIB and serving.share(80 * GIB) == 0.4
    assert serving.share(33 * GIB) == 0.970  # 0.9697, rounded up
    assert serving.share(16 * GIB) == 1


@pytest.mark.parametrize(
    ("training", "fix"),
    [
        ({"tokens_per_microbatch": 4096}, "training.activation_checkpointing = true"),
        (
            {"tokens_per_microbatch": 4096, "activation_checkpointing": True},
            "training.tokens_per_microbatch = 'auto'",
        ),
        ({"tokens_per_microbatch": "auto", "activation_checkpointing": True}, "a second GPU"),
    ],
)
def test_what_leaves_no_room_is_said_with_the_setting_that_makes_some(training, fix):
    """Weights twice, adapters, moments and what is beside take 11.1 GiB of a GPU's 10.8."""
    small, experiment = replace(H100, memory=12 * GIB), made(training=training)
    lines = misfits(experiment, QWEN, small, LENGTHS, memory_of(experiment, QWEN, small, LENGTHS))
    (line,) = lines
    assert line.startswith("vLLM does not start: 0.0 GiB are left")
    assert "one sequence of 2,500 positions needs 0.3 GiB" in line and fix in line


def test_a_context_length_that_the_rest_cannot_hold_is_named():
    experiment = made(engine={"context_length": 40_960})
    serving = serving_of(experiment, QWEN, LENGTHS, room=1 * GIB)
    assert serving.cache == 1 * GIB and serving.context_length == 40_960 > serving.held
