"""Parameters, cache, activations and FLOPs: by hand, as published, and as torch counts them."""

import contextlib
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sdcore.config import LoraConfig
from sdcore.errors import ModelError
from sdcore.models import policies
from sdcore.models.folders import TINY_SOLVER
from sdcore.planning.shapes import KNOWN, Shape, shape_of

QWEN = KNOWN["Qwen/Qwen3-1.7B"]
MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
SMALL = {
    "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 24, "num_hidden_layers": 3, "vocab_size": 99, "max_position_embeddings": 128,
}  # fmt: skip
TOKENS = (4, 128)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the hub gives them for the safetensors
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384),
    ],
)
def test_known_shapes_have_the_published_parameters(name, parameters):
    assert shape_of(name, None).parameters == parameters


def test_the_tiny_solvers_parameters_by_hand():
    layer = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128  # attention, MLP, two norms
    assert shape_of("builtin:tiny-solver", TINY_SOLVER).parameters == 3 * layer + 133 * 128 + 128


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("biased", [True, False])
def test_a_shape_has_the_parameters_of_transformers(kind, tied, biased, tmp_path):
    config, model = MODELS[kind]
    made = config(**SMALL, tie_word_embeddings=tied, attention_bias=biased)
    made.save_pretrained(tmp_path)
    biases = 3 * 64 if kind == "qwen3" and biased else 0  # of o_proj, which Shape leaves to llama
    parameters = sum(weight.numel() for weight in model(made).parameters())
    assert shape_of("here", tmp_path).parameters + biases == parameters


def test_keys_and_values_of_qwen3():
    """vLLM needs 4.38 GiB for the 40,960 positions of Qwen3-1.7B, as it says itself."""
    assert QWEN.cache_bytes("bfloat16") == 2 * 28 * 8 * 128 * 2 == 112 * 1024
    assert 40_960 * QWEN.cache_bytes("bfloat16") / 2**30 == 4.375
    assert QWEN.cache_bytes("float32") == 2 * QWEN.cache_bytes("bfloat16")


def test_adapters_of_the_paper():
    """r (in + out) per matrix and layer; with two moments in float32 837 MB."""
    own = (2048 + 2048) + 2 * (2048 + 1024) + (2048 + 2048) + 3 * (2048 + 6144)
    assert QWEN.lora_parameters(LoraConfig(rank=64)) == 28 * 64 * own == 69_730_304
    assert pytest.approx(837e6, rel=1e-3) == 3 * 4 * 69_730_304
    queries = LoraConfig(rank=1, targets=("q_proj",))
    assert QWEN.lora_parameters(queries) == 28 * (2048 + 2048)


def test_flops_of_a_pass():
    """2 per weight and token, the head on the response only, 2 T² per query element and layer."""
    layer = 2048 * 2048 * 2 + 2 * 2048 * 1024 + 3 * 2048 * 6144
    expected = 2 * 28 * layer * 30 + 2 * 151_936 * 2048 * 20 + 2 * 28 * 2048 * 30**2
    assert QWEN.forward_flops(10, 20) == expected
    assert 2 * QWEN.parameters * 30 == pytest.approx(QWEN.forward_flops(0, 30), rel=0.01)


def kept_bytes(kind: str, dtype: torch.dtype, lora: LoraConfig | None, layers: int) -> float:
    """Bytes per token that torch keeps for the backward pass, without weights."""
    config, architecture = MODELS[kind]
    with torch.random.fork_rng():
        model = architecture(config(**SMALL | {"num_hidden_layers": layers})).to(dtype).eval()
    if lora:
        model = policies.attach_lora(model.requires_grad_(False), lora, seed=0)
    for weight in model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    body = (model.get_base_model() if lora else model).model
    weights, kept = {each.untyped_storage().data_ptr() for each in model.parameters()}, {}
    shapes = {tuple(each.shape) for each in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        copied = tensor.dim() == 2 and {tuple(tensor.shape), tuple(tensor.mT.shape)} & shapes
        if storage.data_ptr() not in weights and not copied:  # autocast copies weights
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    mixed = contextlib.nullcontext() if dtype is torch.float32 else torch.autocast("cpu", dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
        body(input_ids=torch.zeros(TOKENS, dtype=torch.long), use_cache=False)
    return sum(size for size, _ in kept.values()) / (TOKENS[0] * TOKENS[1])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)])
def test_a_layer_keeps_as_many_bytes_as_torch_does(kind, dtype, lora):
    chosen = getattr(torch, dtype)
    layer = kept_bytes(kind, chosen, lora, 3) - kept_bytes(kind, chosen, lora, 2)
    shape = Shape.of(SMALL | {"model_type": kind}, "here")
    assert shape.activation_bytes(dtype, lora) == pytest.approx(layer, rel=0.1)


def test_what_is_not_counted_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}), "utf-8")
    with pytest.raises(ModelError, match="no plan for this architecture"):
        shape_of("here", tmp_path)
    with pytest.raises(ModelError, match="not known"):
        shape_of("someone/something", None)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0}, {"num_attention_heads": 65}, {"hidden_size": -64},
        {"num_hidden_layers": None}, {"vocab_size": "many"}, {"vocab_size": 10**400},
        {"intermediate_size": 160.5}, {"intermediate_size": float("inf")}, {"head_dim": True},
        {"num_key_value_heads": []}, {"max_position_embeddings": 2**31},
    ],
)  # fmt: skip
def test_a_size_is_a_whole_number_or_refused(change):
    ((name, size),) = change.items()
    given = SMALL | {"model_type": "llama", "head_dim": None} | change
    named = "head_dim = 0" if size == 65 else f"{name} = {size!r}"
    with pytest.raises(ModelError, match="lacks a number") as caught:
        Shape.of(given, "here")
    assert caught.value.got == named and caught.value.where == "here"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", "[" * 9999, '{"a":' * 9999, "\0"])
def test_a_config_that_is_no_object_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content, "utf-8")
    with pytest.raises(ModelError, match=r"^config.json (cannot be read|holds no settings)"):
        shape_of("here", tmp_path)
