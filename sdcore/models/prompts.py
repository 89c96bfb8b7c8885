"""Prompts: Jinja user messages inside the model's own chat template, as token ids.

Questions, solutions, traces and critiques are data. They fill a template but are never read as
one, and special tokens that occur in them are broken up before anything is tokenised.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sdcore.config import PromptsConfig
from sdcore.errors import ConfigError
from sdcore.jinja_sandbox import render

Tokenizer: TypeAlias = PreTrainedTokenizerBase
Message = dict[str, str]

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: "
    "{{ message.content }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Chat template of a tokenizer that brings none: `User: ...`, an empty line, `Assistant:`."""


def student_prompt(tokenizer: Tokenizer, prompts: PromptsConfig, question: str) -> tuple[int, ...]:
    """Token ids that ask the student.

    Raises:
        ConfigError: a template does not render, or knows no thinking mode where one is set.
    """
    messages = student_messages(prompts, question)
    return prompt_ids(tokenizer, messages, thinking=prompts.student_thinking)


def teacher_prompt(
    tokenizer: Tokenizer, prompts: PromptsConfig, question: str, context: str | None
) -> tuple[int, ...]:
    """Token ids that show the teacher the context; without one, exactly the student's.

    Raises:
        ConfigError: a template does not render, or knows no thinking mode where one is set.
    """
    if not context:
        return student_prompt(tokenizer, prompts, question)
    messages = teacher_messages(prompts, question, context)
    return prompt_ids(tokenizer, messages, thinking=prompts.teacher_thinking)


def student_messages(prompts: PromptsConfig, question: str) -> list[Message]:
    """Chat messages that ask the student; the system message only where one is set.

    Raises:
        ConfigError: the template does not render.
    """
    return _messages(prompts.system, render(prompts.student, question=question))


def teacher_messages(prompts: PromptsConfig, question: str, context: str | None) -> list[Message]:
    """Chat messages that show the teacher the context; without one, exactly the student's.

    Raises:
        ConfigError: a template does not render.
    """
    if not context:
        return student_messages(prompts, question)
    student = render(prompts.student, question=question)
    text = render(prompts.teacher, student=student, question=question, context=context)
    own = prompts.teacher_system
    return _messages(prompts.system if own is None else own, text)


def prompt_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    thinking: bool | None = None,
) -> tuple[int, ...]:
    """Token ids of a conversation that the model is to continue as the assistant.

    Args:
        tokenizer: its chat template is used, or `PLAIN_TEMPLATE` where it has none.
        messages: role and content; special tokens in a content are broken up.
        thinking: `enable_thinking` of the chat template; None leaves it to the template.

    Raises:
        ConfigError: the chat template refuses the messages, or knows no thinking mode.
    """
    if thinking is not None and "enable_thinking" not in str(tokenizer.chat_template):
        raise ConfigError(
            "the model's chat template knows no thinking mode",
            got=f"enable_thinking = {thinking}",
            fix="leave out prompts.student_thinking and prompts.teacher_thinking",
        )
    safe = [
        message | {"content": neutralise(message["content"], tokenizer)} for message in messages
    ]
    switches = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text = tokenizer.apply_chat_template(
            safe,
            chat_template=None if tokenizer.chat_template else PLAIN_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
            **switches,
        )
    except TemplateError as error:
        raise ConfigError(
            "the model's chat template refuses the messages",
            got=error,
            where=f"roles {', '.join(message['role'] for message in messages)}",
            fix="some models know no system message: leave prompts.system out",
        ) from error
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def neutralise(text: str, tokenizer: Tokenizer) -> str:
    """Break up special tokens with a space after their first character; other text is unchanged.

    So `<|im_end|>` in a question becomes `< |im_end|>` and cannot end the user's turn.
    """
    return _start_of(frozenset(_special_tokens(tokenizer))).sub(r"\1 ", text)


def _special_tokens(tokenizer: Tokenizer) -> set[str]:
    """All tokens marked special; some tokenizers name only a part of them in a role like eos."""
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


@cache
def _start_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """The first character of each occurrence of a token, overlapping ones too."""
    return re.compile(f"(?={'|'.join(map(re.escape, sorted(tokens))) or '(?!)'})(.)", re.DOTALL)


def _messages(system: str | None, text: str) -> list[Message]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]
