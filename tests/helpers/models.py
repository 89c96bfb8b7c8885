"""Folders with tiny random models that load as those of the hub do: weights, tokenizer, config."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sdcore.config import LoraConfig, ModelConfig, PromptsConfig
from sdcore.models import hub, policies, prompts
from tests.helpers.families import QWEN, SMOLLM2, byte_bpe

_SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def qwen3(folder: Path) -> Path:
    """As Qwen/Qwen3-1.7B: bfloat16, normalised queries and keys, a chat template with thinking."""
    tokenizer = byte_bpe(QWEN)
    config = Qwen3Config(
        **_SIZE, **_ids(tokenizer), head_dim=8, max_position_embeddings=40_960, dtype="bfloat16"
    )
    return _saved(Qwen3ForCausalLM, config, tokenizer, folder)


def smollm2(folder: Path) -> Path:
    """As HuggingFaceTB/SmolLM2-135M-Instruct: a Llama whose template has a system message."""
    tokenizer = byte_bpe(SMOLLM2)
    config = LlamaConfig(**_SIZE, **_ids(tokenizer), max_position_embeddings=8192)
    return _saved(LlamaForCausalLM, config, tokenizer, folder)


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }


def _saved(
    architecture: Callable[[PreTrainedConfig], PreTrainedModel],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture(config)
    model.to(config.dtype or torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def use(folder: Path) -> None:
    """What a run does with a model's folder before it samples."""
    found = hub.resolve(str(folder))
    tokenizer = policies.load_tokenizer(found)
    prompts.require_shown(tokenizer, PromptsConfig())
    prompts.end_of_turn(tokenizer, policies.end_ids(found))
    policies.context_length(found)
    policies.check_targets(found, LoraConfig())
    policy = policies.load_policy(found, ModelConfig(name=str(folder), device="cpu"))
    ids = prompts.student_prompt(tokenizer, PromptsConfig(), "1 + 1?")
    policy(input_ids=torch.tensor([ids[:60]]))
