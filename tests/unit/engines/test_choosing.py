"""What `engine.kind = "auto"` stands for, by machine and model."""

import json

import pytest

from sdcore.config import EngineConfig, ModelConfig
from sdcore.engines import Resources
from sdcore.engines.choosing import choice
from sdcore.engines.opening import open_engine
from sdcore.errors import ConfigError, ModelError

REGISTRY = '_TEXT_GENERATION_MODELS = {\n    "LlamaForCausalLM": ("llama", "LlamaForCausalLM"),\n'


def model(**changes):
    return ModelConfig.model_validate({"name": "m", "dtype": "bfloat16"} | changes)


@pytest.fixture
def python(tmp_path):
    models = tmp_path / "env/lib/python3.11/site-packages/vllm/model_executor/models"
    models.mkdir(parents=True)
    (models / "registry.py").write_text(REGISTRY)
    path = tmp_path / "env/bin/python"
    path.parent.mkdir()
    path.touch()
    return path


def of(tmp_path, architecture):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return tmp_path


def test_vllm_is_taken_where_it_can_serve_the_model_on_a_gpu(tmp_path, python):
    folder = of(tmp_path, "LlamaForCausalLM")
    assert choice(model(), folder, python, gpus=1).kind == "vllm"
    assert choice(model(), None, python, gpus=8).kind == "vllm"  # not at hand yet
    assert choice(model(), None, None, gpus=8).kind == "vllm"  # another machine


@pytest.mark.parametrize(
    ("changes", "gpus", "architecture", "why"),
    [
        ({}, 0, "LlamaForCausalLM", "no GPU"),
        ({"device": "cpu"}, 2, "LlamaForCausalLM", "no GPU"),
        ({"dtype": "float32"}, 1, "LlamaForCausalLM", "float32"),
        ({}, 1, "OurForCausalLM", "does not know OurForCausalLM"),
    ],
)
def test_else_it_is_this_process_and_the_reason_is_said(
    tmp_path, python, changes, gpus, architecture, why
):
    made = choice(model(**changes), of(tmp_path, architecture), python, gpus=gpus)
    assert made.kind == "transformers" and why in str(made)


@pytest.mark.parametrize("text", ["", "[]", '{"architectures": '])
def test_a_config_that_cannot_be_read_is_said(tmp_path, python, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        choice(model(), tmp_path, python, gpus=1)


def test_without_its_environment_vllm_is_not_taken(tmp_path):
    made = choice(model(), None, tmp_path / "python", gpus=1)
    assert made.kind == "transformers" and "make vllm" in made.reason


def test_an_engine_that_is_not_settled_is_not_opened(tmp_path):
    with pytest.raises(ConfigError, match="auto"):
        open_engine(EngineConfig(kind="auto"), Resources(model(), tmp_path, None, tmp_path))
