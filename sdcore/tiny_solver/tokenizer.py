"""The tiny solver's tokenizer and prompts: a token a word, a tag or a digit."""

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sdcore.config import PromptsConfig
from sdcore.models.prompts import prompt_ids, teacher_messages
from sdcore.problems import arithmetic

PROMPTS = PromptsConfig(student="{{ question }}", teacher="Hint: {{ context }}\n{{ question }}")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message.role + '>' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
UNKNOWN = "<unk>"
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", UNKNOWN, "<system>", "<user>", "<assistant>")
TAGS = tuple(
    f"<{slash}{name}>"
    for name in ("step_1", "step_2", "step_3", "step_4", "answer")
    for slash in ("", "/")
)


def words() -> list[str]:
    """The pieces of questions, steps and prompts between their numbers, longest first."""
    styles = [template for style in arithmetic.STYLES.values() for template in style]
    templates = [*styles, *arithmetic.REFERENCE_STYLE, *arithmetic.QUESTIONS, PROMPTS.teacher]
    pieces = {piece for text in templates for piece in re.split(r"\{+.*?\}+", text)}
    return sorted((piece for piece in pieces if len(piece) > 1), key=lambda p: (-len(p), p))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words and tags; other ASCII text falls apart into characters."""
    pieces = [*TAGS, *words(), *(chr(code) for code in (10, *range(32, 127)))]
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL_TOKENS, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    alternatives = "|".join(re.escape(piece) for piece in [*TAGS, *words()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{alternatives}|[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{role}_token": f"<{role}>" for role in ("pad", "bos", "eos", "unk")},
        additional_special_tokens=list(SPECIAL_TOKENS[4:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


def hinted_prompt(
    tokenizer: PreTrainedTokenizerFast, question: str, hint: str | None
) -> tuple[int, ...]:
    """Token ids of the question, after the hint where there is one."""
    return prompt_ids(tokenizer, teacher_messages(PROMPTS, question, hint))
