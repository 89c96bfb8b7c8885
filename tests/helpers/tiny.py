"""Real models small enough for unit tests: random weights, a layer or two, 32 tokens."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from sdcore.config import LoraConfig
from sdcore.models import policies, sealed, weight_files
from sdcore.training.trainer import Example

VOCABULARY = 32
LORA = LoraConfig(rank=4, alpha=8)


def llama(seed: int = 0, *, tied: bool = True, **settings: object) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        eos_token_id=1,
        **settings,
    )
    return _seeded(LlamaForCausalLM, config, seed)


def of_kind(kind: str, **settings: object):
    """A small model of transformers' `kind`, without a sliding window."""
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "sliding_window": None, "initializer_range": 0.3,
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | settings)).eval()


def qwen(kind, config, **settings: object):
    """A Qwen2 or Qwen3, with heads that share keys and values."""
    sizes = _SMALL | {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8}
    return _seeded(kind, config(**sizes | settings))


def gpt2():
    """A model with `Conv1D` layers, whose weights are [I, O]."""
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    return _seeded(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=1, **sizes),
    )


def save(policy: policies.Policy, folder: Path) -> None:
    """Write a policy's weights as a checkpoint has them."""
    with sealed.replacing(folder) as fresh:
        weight_files.write(policy, fresh, weight_files.gathered(policy))


def flip(path: Path, at: int = -1) -> None:
    """Flip the lowest bit of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _seeded(kind, config, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval().requires_grad_(False)


def adapted(seed: int = 0):
    return policies.attach_lora(llama(), LORA, seed)


_SMALL = dict(
    vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=1,
)  # fmt: skip
MODELS = {
    "adapter": adapted,
    "tied": llama,
    "untied": lambda: llama(tied=False),
    "soft-capped": lambda: _seeded(
        Gemma2ForCausalLM, Gemma2Config(**_SMALL, head_dim=8, final_logit_softcapping=1.5)
    ),
    "with sinks": lambda: _seeded(
        GptOssForCausalLM,
        GptOssConfig(
            **_SMALL,
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            sliding_window=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
    ),
    "multiplied": lambda: _seeded(CohereForCausalLM, CohereConfig(**_SMALL, logit_scale=0.25)),
    "divided": lambda: _seeded(GraniteForCausalLM, GraniteConfig(**_SMALL, logits_scaling=3.0)),
    "with a bias": lambda: _seeded(PhiForCausalLM, PhiConfig(**_SMALL)),
}
"""Policies by what is special in their head."""


def examples(count: int = 6, *, same_prompt: bool = False) -> list[Example]:
    """Rollouts of different lengths, with everything that any objective needs."""
    drawn = torch.Generator().manual_seed(count)

    def ids(length: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (length,), generator=drawn).tolist()

    made = []
    for index in range(count):
        prompt, response = ids(3 + index % 2), ids(4 + 2 * (index % 3))
        made.append(
            Example(
                rollout_id=f"rollout-{index}",
                prompt_ids=prompt,
                response_ids=response,
                teacher_prompt_ids=prompt if same_prompt else ids(5 + index % 3) + prompt,
                advantage=(-1.0) ** index,
                sampled_logprobs=[-3.0] * len(response),
            )
        )
    return made
