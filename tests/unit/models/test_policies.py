import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sdcore.config import LoraConfig, ModelConfig, SamplingConfig
from sdcore.engines import Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.errors import ModelError
from sdcore.models import policies
from sdcore.training.batches import pack
from sdcore.training.head import head_input
from tests.helpers.tiny import LORA, MODELS, adapted, flip, llama, save

HERE = ModelConfig(name="folder", device="cpu")
IDS = torch.tensor([[3, 4, 5]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    llama().save_pretrained(folder)
    return folder


def changed(policy):
    with torch.no_grad():
        for weight in policies.weights(policy).values():
            weight.add_(0.5)
    return policy


def test_loaded_policy_is_the_saved_one_frozen_and_in_eval_mode(folder):
    loaded = policies.load_policy(folder, HERE)
    assert torch.equal(loaded(IDS).logits, llama()(IDS).logits)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert not any(module.training for module in loaded.modules())


def test_policy_loads_in_the_type_asked_for(folder):
    half = policies.load_policy(folder, HERE.model_copy(update={"dtype": "bfloat16"}))
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_pickled_weights_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pickled")
    stored = load_file(tmp_path / "pickled" / "model.safetensors")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(stored, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        policies.load_policy(tmp_path / "pickled", HERE)


def without(stored, part):
    return {name: tensor for name, tensor in stored.items() if part not in name}


FOREIGN = {
    "a norm is missing": (
        lambda stored: without(stored, "layers.1.input_layernorm"),
        r"1 missing: model\.layers\.1\.input_layernorm\.weight",
    ),
    "the last norm is missing": (
        lambda stored: without(stored, "model.norm"), r"1 missing: model\.norm\.weight",
    ),
    "fewer layers": (lambda stored: without(stored, "layers.1."), "9 missing: .* and 1 more"),
    "more layers": (
        lambda stored: stored
        | {n.replace("rs.1.", "rs.2."): t.clone() for n, t in stored.items() if "rs.1." in n},
        "9 unexpected: ",
    ),
    "renamed": (
        lambda stored: {name.replace("q_proj", "query"): each for name, each in stored.items()},
        "2 missing: .*q_proj.*2 unexpected: .*query",
    ),
    "no embedding": (lambda stored: without(stored, "embed_tokens"), "missing: .*embed_tokens"),
    "one tensor more": (lambda stored: stored | {"extra": torch.zeros(1)}, "1 unexpected: extra"),
    "a head of its own": (
        lambda stored: stored | {"lm_head.weight": stored["model.embed_tokens.weight"] + 1},
        "ties the head to the embedding",
    ),
    "another shape": (
        lambda stored: stored | {"model.norm.weight": torch.ones(8)},
        r"1 of another shape: model\.norm\.weight",
    ),
    "nothing": (lambda _: {"other": torch.zeros(1)}, "21 missing"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_weights_that_are_not_those_of_the_config_are_refused(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "foreign")
    path = tmp_path / "foreign" / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        policies.load_policy(tmp_path / "foreign", HERE)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "adapter"])
def test_models_of_every_kind_load_whole_with_an_attention_that_they_support(name, tmp_path):
    made = MODELS[name]()
    made.save_pretrained(tmp_path)
    loaded = policies.load_policy(tmp_path, HERE)
    assert loaded.config._attn_implementation == ("sdpa" if made._supports_sdpa else "eager")
    assert torch.equal(loaded(IDS).logits, made(IDS).logits)
    save(loaded, tmp_path / "again")  # what we write has every tensor too
    assert torch.equal(policies.load_policy(tmp_path / "again", HERE)(IDS).logits, made(IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["soft-capped", "with sinks"])  # as Gemma-2, gpt-oss
def test_models_without_sdpa_sample_and_score_the_same_logprobs(name, tmp_path):
    MODELS[name]().save_pretrained(tmp_path)
    engine = TransformersEngine(policies.load_policy(tmp_path, HERE), end_ids=[1])
    asked = [Request(prompt, seed) for seed in range(6) for prompt in ((3, 4, 5), (6,), (7, 8))]
    completions = engine.generate(asked, SamplingConfig(max_new_tokens=20))
    scorer = policies.load_policy(tmp_path, HERE)
    packed = pack([r.prompt_ids for r in asked], [c.token_ids for c in completions])
    looked = head_input(scorer, packed)
    logprobs_TV = looked.head.logits(looked.hidden_TD).log_softmax(-1)
    scored_T = logprobs_TV.gather(1, packed.tokens_T[:, None])[:, 0]
    sampled_T = torch.tensor([each for c in completions for each in c.logprobs])
    assert len(sampled_T) > 100
    torch.testing.assert_close(sampled_T, scored_T, rtol=0, atol=1e-4)


def test_attention_can_be_set(folder, tmp_path):
    eager = policies.load_policy(folder, HERE.model_copy(update={"attention": "eager"}))
    assert eager.config._attn_implementation == "eager"
    assert torch.allclose(eager(IDS).logits, llama()(IDS).logits, atol=1e-5)
    MODELS["soft-capped"]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"try model\.attention = 'auto'"):
        policies.load_policy(tmp_path, HERE.model_copy(update={"attention": "sdpa"}))


def test_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        policies.load_policy(tmp_path / "nowhere", HERE)


def test_end_ids_come_from_the_generation_config(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "ends")
    path = tmp_path / "ends" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [1, 7]}))
    _with_tokenizer(tmp_path / "ends")
    assert policies.end_ids(tmp_path / "ends") == (1, 7)
    for zero in (0, [0]):  # an id like any other
        path.write_text(json.dumps({"eos_token_id": zero}))
        assert policies.end_ids(tmp_path / "ends") == (0,)
    for none in ({}, {"eos_token_id": []}):
        path.write_text(json.dumps(none))
        assert policies.end_ids(tmp_path / "ends") == (2,)
    path.unlink()
    assert policies.end_ids(tmp_path / "ends") == (2,)


def _with_tokenizer(folder):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "<eos>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)


def test_context_length_is_the_models(folder):
    assert policies.context_length(folder) == 64


def test_adapter_starts_as_the_base_and_depends_on_its_seed_alone():
    base_logits = llama()(IDS).logits
    state = torch.get_rng_state()
    first = adapted(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = adapted(seed=3), adapted(seed=4)
    assert torch.equal(first(IDS).logits, base_logits)
    ours, same, others = (policies.weights(policy) for policy in (first, again, other))
    assert all(torch.equal(ours[name], same[name]) for name in ours)
    assert not any(torch.equal(ours[name], others[name]) for name in ours if "lora_A" in name)


def test_adapter_alone_is_trained():
    trained = {name for name, w in adapted().named_parameters() if w.requires_grad}
    assert len(trained) == 2 * 2 * len(LORA.targets)  # A and B, two layers
    assert all("lora_" in name for name in trained)


def test_adapter_that_fits_nowhere_is_a_clear_error():
    with pytest.raises(ModelError, match="does not fit"):
        policies.attach_lora(llama(), LoraConfig(targets=("no_such_layer",)), 0)


@pytest.mark.parametrize("make", [llama, adapted])
def test_weights_come_back_bit_for_bit(make, tmp_path):
    saved, loaded = changed(make()), make()
    save(saved, tmp_path / "weights")
    policies.load_weights(loaded, tmp_path / "weights")
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
        policies.load_weights(adapted(), tmp_path / "wider")


def test_damaged_weights_are_refused(tmp_path):
    save(llama(), tmp_path / "weights")
    path = tmp_path / "weights" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"changed: model\.safetensors"):
        policies.load_weights(llama(), tmp_path / "weights")


def test_one_flipped_bit_of_the_weights_is_noticed(tmp_path):
    for make, name in ((llama, "model"), (adapted, "adapter_model")):
        save(make(), tmp_path / name)
        flip(tmp_path / name / f"{name}.safetensors")
        with pytest.raises(ModelError, match=rf"changed: {name}\.safetensors"):
            policies.load_weights(make(), tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", policies.CHECKSUMS])
def test_a_model_folder_that_was_written_here_is_checked_when_it_is_loaded(tmp_path, name):
    save(llama(), tmp_path / "base")
    assert policies.load_policy(tmp_path / "base", HERE)
    flip(tmp_path / "base" / name, 0)
    with pytest.raises(ModelError, match="not as they were written"):
        policies.load_policy(tmp_path / "base", HERE)


def test_checksums_are_those_of_sha256sum(tmp_path):
    with policies.replacing(tmp_path / "folder") as fresh:
        (fresh / "below").mkdir()
        (fresh / "below" / "a b.txt").write_text("abc")
    # the SHA-256 of "abc" is the example of FIPS 180-2, B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "folder" / policies.CHECKSUMS).read_text() == f"{digest}  below/a b.txt\n"
    policies.require_intact(tmp_path / "folder")
    (tmp_path / "folder" / "below" / "a b.txt").unlink()
    with pytest.raises(ModelError, match=r"below/a b\.txt"):
        policies.require_intact(tmp_path / "folder")
    with pytest.raises(ModelError, match="no checksums"):
        policies.require_intact(tmp_path)


def test_digest_follows_the_weights_and_nothing_else(tmp_path):
    for name, policy in (("a", llama()), ("b", llama()), ("c", changed(llama()))):
        save(policy, tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("not weights")
    digests = [policies.weights_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == policies.digest(policies.weights(llama()))
    with pytest.raises(ModelError, match="no safetensors"):
        policies.weights_digest(tmp_path)


def test_digest_tells_names_types_shapes_and_values_apart(tmp_path):
    tensor = torch.tensor([1.0, 2.0, 3.0, 4.0])
    different = [
        {"a": tensor}, {"b": tensor}, {"a": tensor.view(torch.int32)}, {"a": tensor.view(2, 2)},
        {"a": tensor.flip(0)}, {"a": tensor, "b": tensor}, {"a": tensor.bfloat16()},
    ]  # fmt: skip
    assert len({policies.digest(tensors) for tensors in different}) == len(different)
    strided = torch.arange(8.0).view(4, 2)
    assert policies.digest({"a": strided.T}) == policies.digest({"a": strided.T.contiguous()})
    policies.save_tensors({"a": tensor}, tmp_path / "model-1.safetensors")
    policies.save_tensors({"b": tensor}, tmp_path / "model-2.safetensors")
    assert policies.weights_digest(tmp_path) == policies.digest({"b": tensor, "a": tensor})


def test_failed_save_leaves_the_old_folder_and_no_litter(tmp_path):
    save(llama(), tmp_path / "weights")
    before = policies.weights_digest(tmp_path / "weights")
    with pytest.raises(RuntimeError), policies.replacing(tmp_path / "weights") as fresh:
        (fresh / "model.safetensors").write_bytes(b"half")
        raise RuntimeError
    assert policies.weights_digest(tmp_path / "weights") == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_save_that_dies_while_it_deletes_the_old_folder_leaves_no_part_of_it(
    tmp_path, monkeypatch
):
    def dies(folder, **_):
        next(Path(folder).rglob("*.safetensors")).unlink()
        raise KeyboardInterrupt

    save(llama(), tmp_path / "weights")
    monkeypatch.setattr(policies.shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        save(adapted(), tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_second_save_takes_the_firsts_place(tmp_path):
    save(llama(), tmp_path / "weights")
    save(adapted(), tmp_path / "weights")
    assert not (tmp_path / "weights" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_tests_name_the_device_of_their_models():
    # They feed tensors of the CPU to models that `auto` puts on a GPU where there is one.
    root = Path(__file__).parents[2]
    files = [*root.glob("unit/**/*.py"), *root.glob("integration/*.py"), *root.glob("helpers/*.py")]
    made = [call for file in files for call in re.findall(r"ModelConfig\((.+)\)", file.read_text())]
    assert len(made) > 5
    assert [call for call in made if "device=" not in call] == []
