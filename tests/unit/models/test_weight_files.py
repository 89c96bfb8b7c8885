import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sdcore.errors import ModelError
from sdcore.models import policies, weight_files
from tests.helpers.tiny import LORA, adapted, flip, llama, save

IDS = torch.tensor([[3, 4, 5]])


def changed(policy):
    with torch.no_grad():
        for weight in weight_files.gathered(policy).values():
            weight.add_(0.5)
    return policy


@pytest.mark.parametrize("make", [llama, adapted])
def test_weights_come_back_bit_for_bit(make, tmp_path):
    saved, loaded = changed(make()), make()
    save(saved, tmp_path / "weights")
    weight_files.load(loaded, tmp_path / "weights")
    assert torch.equal(loaded(IDS).logits, saved(IDS).logits)


def test_saved_folders_are_read_by_transformers_and_peft(tmp_path):
    full, adapter = changed(llama()), changed(adapted())
    save(full, tmp_path / "full")
    save(adapter, tmp_path / "adapter")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert torch.equal(theirs(IDS).logits, full(IDS).logits)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # PEFT's own
        theirs = PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    assert torch.equal(theirs(IDS).logits, adapter(IDS).logits)


def test_weights_of_another_shape_are_refused(tmp_path):
    wider = policies.attach_lora(llama(), LORA.model_copy(update={"rank": 8}), 0)
    save(wider, tmp_path / "wider")
    with pytest.raises(ModelError, match="not this model's"):
        weight_files.load(adapted(), tmp_path / "wider")


def test_damaged_weights_are_refused(tmp_path):
    save(llama(), tmp_path / "weights")
    path = tmp_path / "weights" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"changed: model\.safetensors"):
        weight_files.load(llama(), tmp_path / "weights")


def test_one_flipped_bit_of_the_weights_is_noticed(tmp_path):
    for make, name in ((llama, "model"), (adapted, "adapter_model")):
        save(make(), tmp_path / name)
        flip(tmp_path / name / f"{name}.safetensors")
        with pytest.raises(ModelError, match=rf"changed: {name}\.safetensors"):
            weight_files.load(make(), tmp_path / name)


def test_digest_follows_the_weights_and_nothing_else(tmp_path):
    for name, policy in (("a", llama()), ("b", llama()), ("c", changed(llama()))):
        save(policy, tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("not weights")
    digests = [weight_files.folder_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == weight_files.digest(weight_files.gathered(llama()))
    with pytest.raises(ModelError, match="no safetensors"):
        weight_files.folder_digest(tmp_path)


def test_digest_tells_names_types_shapes_and_values_apart(tmp_path):
    tensor = torch.tensor([1.0, 2.0, 3.0, 4.0])
    different = [
        {"a": tensor}, {"b": tensor}, {"a": tensor.view(torch.int32)}, {"a": tensor.view(2, 2)},
        {"a": tensor.flip(0)}, {"a": tensor, "b": tensor}, {"a": tensor.bfloat16()},
    ]  # fmt: skip
    assert len({weight_files.digest(tensors) for tensors in different}) == len(different)
    strided = torch.arange(8.0).view(4, 2)
    assert weight_files.digest({"a": strided.T}) == weight_files.digest(
        {"a": strided.T.contiguous()}
    )
    weight_files.save_tensors({"a": tensor}, tmp_path / "model-1.safetensors")
    weight_files.save_tensors({"b": tensor}, tmp_path / "model-2.safetensors")
    assert weight_files.folder_digest(tmp_path) == weight_files.digest({"b": tensor, "a": tensor})
