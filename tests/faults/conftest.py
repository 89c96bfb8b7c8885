"""A model that the tests of bad model folders damage."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.families import characters


@pytest.fixture(scope="package")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    settings = LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, eos_token_id=1, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(folder)
    characters().save_pretrained(folder)
    return folder
