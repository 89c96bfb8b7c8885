"""Small tokenizers of the families that models bring, each with a chat template of its kind."""

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from sdcore.models import hub, policies
from sdcore.models.smoke import QWEN, TRACE, byte_bpe

TEXTS = (TRACE, "Grüße: 3 × 4 = 12, naïve 😀\n\n  two  spaces\tand a tab ", "x")

# A thought is switched off by `enable_thinking`; the tokens are those of `characters`.
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if not (enable_thinking | default(true)) %}<think></think>{% endif %}{% endif %}"
)
# As SmolLM3's: the switch is in the system message too.
SMOLLM3 = (
    "{{- '<|im_start|>system\\n' + ('/no_think' if enable_thinking is defined "
    "and not enable_thinking else '/think') + '<|im_end|>\\n' }}" + QWEN
)
# As Llama 2's: the tokenizer would add its own begin token, and the template has one too.
LLAMA = (
    "{{ bos_token }}{% for message in messages %}[INST] {{ message.content }} [/INST]{% endfor %}"
)


def characters(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a character; <|end|> has a role, <|start|> is only marked special."""
    characters = {chr(code): code - 32 for code in range(32, 127)} | {"\n": 95, "<unk>": 96}
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<|start|>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|end|>",
        chat_template=chat_template,
    )


def unigram(template: str | None = LLAMA) -> PreTrainedTokenizerFast:
    """Unigram with byte fallback and a leading space, as SentencePiece models are converted."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    pieces += [
        (piece, -3.0) for piece in ("▁", "step", "answer", "▁=", *"abcdefghij0123456789_<>/")
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return _fast(tokenizer, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def words() -> PreTrainedTokenizerFast:
    """The tiny solver's own: a token a word, a tag or a digit."""
    return policies.load_tokenizer(hub.resolve("builtin:tiny-solver"))


FAMILIES = {"byte-level BPE": byte_bpe, "unigram": unigram, "words": words}


def _fast(tokenizer, template, **special) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **special,
    )
