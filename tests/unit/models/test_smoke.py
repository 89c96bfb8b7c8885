"""Tiny random models: the architecture, the tokenizer and the template of those they stand for."""

import json
import os
import shutil

import pytest

from sdcore.config import PromptsConfig
from sdcore.errors import ModelError
from sdcore.models import hub, policies, weight_files
from sdcore.models.folders import TINY_SOLVER
from sdcore.models.prompts import student_prompt
from tests.helpers.models import use


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SDCORE_CACHE", str(tmp_path / "cache"))


def config(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def test_a_model_on_this_machine_keeps_its_tokenizer_and_its_architecture():
    folder = hub.resolve("smoke:builtin:tiny-solver")
    use(folder)
    assert hub.resolve("smoke:builtin:tiny-solver") == folder
    own, made = config(TINY_SOLVER), config(folder)
    assert made["model_type"] == own["model_type"] and made["vocab_size"] == own["vocab_size"]
    assert made["hidden_size"] == 32 < own["hidden_size"] and made["num_hidden_layers"] == 2
    question = "What is 12 + 30 - 5?"
    prompts = [
        student_prompt(
            policies.load_tokenizer(each), PromptsConfig(student="{{ question }}"), question
        )
        for each in (folder, TINY_SOLVER)
    ]
    assert prompts[0] == prompts[1]


def test_qwen3_is_made_without_a_hub_with_its_thinking_switch():
    folder = hub.resolve("smoke:Qwen/Qwen3-1.7B")
    use(folder)
    made, tokenizer = config(folder), policies.load_tokenizer(folder)
    assert made["model_type"] == "qwen3" and made["max_position_embeddings"] == 40_960
    shown = {
        thinking: tokenizer.decode(
            student_prompt(tokenizer, PromptsConfig(student_thinking=thinking), "1 + 1?")
        )
        for thinking in (True, False)
    }
    assert shown[True].endswith("<|im_start|>assistant\n")
    assert shown[False] == shown[True] + "<think>\n\n</think>\n\n"
    assert len(tokenizer.encode("<think>")) == 1


def test_weights_are_the_same_each_time_and_others_for_another_family(tmp_path, monkeypatch):
    first = weight_files.folder_digest(hub.resolve("smoke:builtin:smollm2"))
    monkeypatch.setenv("SDCORE_CACHE", str(tmp_path / "other"))
    assert weight_files.folder_digest(hub.resolve("smoke:builtin:smollm2")) == first
    assert weight_files.folder_digest(hub.resolve("smoke:Qwen/Qwen3-8B")) != first


def test_an_unknown_model_that_is_not_here_says_how_to_fetch_its_config():
    with pytest.raises(ModelError, match=r"not on this machine[\s\S]*hf download some/model"):
        hub.resolve("smoke:some/model")


@pytest.mark.parametrize("content", ["{", "[]", "[" * 9999, '{"model_type": "nonesuch"}', "{}"])
def test_a_config_that_cannot_be_made_small_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content, "utf-8")
    with pytest.raises(ModelError, match=r"config.json|no tiny model"):
        hub.resolve(f"smoke:{tmp_path}")
    assert [path.suffix for path in (tmp_path / "cache" / "smoke").iterdir()] == [".lock"]


def test_what_is_no_file_of_settings_is_left_out(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(TINY_SOLVER, source)
    os.mkfifo(source / "pipe.json")
    (source / "folder.json").mkdir()
    (source / os.fsdecode(b"caf\xe9.json")).write_text("{}", "utf-8")
    made = {path.name for path in hub.resolve(f"smoke:{source}").iterdir()}
    assert {"config.json", "tokenizer.json"} < made
    assert not made & {"pipe.json", "folder.json", os.fsdecode(b"caf\xe9.json")}
