import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcore.config import LoraConfig, ModelConfig, SamplingConfig
from sdcore.engines import Request
from sdcore.engines.transformers import TransformersEngine
from sdcore.errors import ModelError
from sdcore.models import policies, sealed, weight_files
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


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "small")
    _with_tokenizer(tmp_path / "small")
    path = tmp_path / "small" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 1}))
    with pytest.raises(ModelError, match=r"does not have: 'a' \(1\)"):
        policies.load_tokenizer(tmp_path / "small")


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
    ours, same, others = (weight_files.gathered(policy) for policy in (first, again, other))
    assert all(torch.equal(ours[name], same[name]) for name in ours)
    assert not any(torch.equal(ours[name], others[name]) for name in ours if "lora_A" in name)


def test_adapter_alone_is_trained():
    trained = {name for name, w in adapted().named_parameters() if w.requires_grad}
    assert len(trained) == 2 * 2 * len(LORA.targets)  # A and B, two layers
    assert all("lora_" in name for name in trained)


def test_adapter_that_fits_nowhere_is_a_clear_error():
    with pytest.raises(ModelError, match="does not fit"):
        policies.attach_lora(llama(), LoraConfig(targets=("no_such_layer",)), 0)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", sealed.CHECKSUMS])
def test_a_model_folder_that_was_written_here_is_checked_when_it_is_loaded(tmp_path, name):
    save(llama(), tmp_path / "base")
    assert policies.load_policy(tmp_path / "base", HERE)
    flip(tmp_path / "base" / name, 0)
    with pytest.raises(ModelError, match="not as they were written"):
        policies.load_policy(tmp_path / "base", HERE)


def test_tests_name_the_device_of_their_models():
    # They feed tensors of the CPU to models that `auto` puts on a GPU where there is one.
    root = Path(__file__).parents[2]
    files = [*root.glob("unit/**/*.py"), *root.glob("integration/*.py"), *root.glob("helpers/*.py")]
    made = [call for file in files for call in re.findall(r"ModelConfig\((.+)\)", file.read_text())]
    assert len(made) > 5
    assert [call for call in made if "device=" not in call] == []
