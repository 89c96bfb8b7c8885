"""Tiny random models in place of real ones: the same architecture, tokenizer and chat template.

The name is `smoke:` before the name of a model. Tokenizer and config are the model's own where its
folder is on this machine. Nothing is downloaded: for a model that is not here, its family's
architecture is made from its config, with a small tokenizer of its own that has the family's
control tokens and a chat template of the same form.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from sdcore.errors import ModelError
from sdcore.models import sealed, weight_files
from sdcore.models.folders import (
    at_hand,
    cache_folder,
    copy_settings,
    read_config,
    settings_digest,
)
from sdcore.store.schema import content_key

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
"""Sizes in place of a config's own, where it has them."""
PER_LAYER = {"layer_types", "max_window_layers"}  # follow from the number of layers

# Thinking is on unless it is switched off, which opens and closes an empty thought.
QWEN = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content "
    "+ '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
# A system message where none is given, and no thinking.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRACE = "<step_1>12 + 30 = 42</step_1>\n<step_2>42 - 5 = 37</step_2>\n<answer>37</answer>"


@dataclass(frozen=True)
class Family:
    """Models of one architecture and one chat template.

    Attributes:
        names: pattern of the names of its models.
        kind: `model_type` of their config.json.
        positions: of prompt and response together.
        template: a chat template of the form of theirs.
        added: tokens of their tokenizer that the template writes, besides those of the turns.
    """

    names: str
    kind: str
    positions: int
    template: str
    added: tuple[str, ...] = ()


FAMILIES = (
    Family(r"Qwen/Qwen3-[\d.]+B", "qwen3", 40_960, QWEN, ("<think>", "</think>")),
    Family(r"builtin:smollm2|HuggingFaceTB/SmolLM2-[\d.]+[MB]-Instruct", "llama", 8192, SMOLLM2),
)
"""Families whose models need not be on this machine."""


def smoke_model(name: str) -> Path:
    """Return the folder of the tiny model in place of a named one; it is made once.

    Args:
        name: of the model that it stands for.

    Raises:
        ModelError: the model is neither on this machine nor of a known family, or its architecture
            cannot be made small.
    """
    source, family = at_hand(name), _family(name)
    if source is not None:
        key = content_key(TINY, settings_digest(source))
    elif family is not None:
        key = content_key(TINY, asdict(family))
    else:
        raise ModelError(
            "the config and the tokenizer of this model are not on this machine",
            got=name,
            fix=f"`hf download {name} --exclude '*.safetensors'` fetches them without the weights",
        )
    folder = cache_folder() / "smoke" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}-{key[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with sealed.replacing(folder) as fresh:
                if source is not None:
                    copy_settings(source, fresh)
                    _write_model(read_config(source), fresh)
                elif family is not None:
                    _write_model(_write_tokenizer(family, fresh), fresh)
    return folder


def byte_bpe(template: str | None = QWEN, added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE, digits apart, as SmolLM2's and Qwen's; no begin token, no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRACE] * 5, trainer)
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",  # noqa: S106 - no password
    )


def _family(name: str) -> Family | None:
    return next((each for each in FAMILIES if re.fullmatch(each.names, name)), None)


def _write_tokenizer(family: Family, folder: Path) -> dict[str, Any]:
    """Write a tokenizer of the family's form; the config of a model that goes with it."""
    tokenizer = byte_bpe(family.template, family.added)
    tokenizer.save_pretrained(folder)
    return {
        **TINY,
        "model_type": family.kind,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "max_position_embeddings": family.positions,
        "tie_word_embeddings": True,
    }


def _write_model(config: dict[str, Any], folder: Path) -> None:
    """Write random weights of an architecture in small; they are always the same.

    Raises:
        ModelError: transformers makes no causal language model of the config.
    """
    small = {name: TINY.get(name, value) for name, value in config.items() if name not in PER_LAYER}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = AutoConfig.for_model(small.pop("model_type"), **small)
            model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except Exception as error:  # whatever transformers happens to meet
        raise ModelError(
            "no tiny model of this architecture can be made",
            got=f"{type(error).__name__}: {error}",
            where=str(config.get("model_type")),
            fix="add the names of its sizes to TINY in sdcore/models/smoke.py",
        ) from error
    weight_files.write(model, folder, weight_files.gathered(model))
