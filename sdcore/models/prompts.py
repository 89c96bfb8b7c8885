"""Prompts: Jinja user messages inside the model's own chat template, as token ids.

Questions, solutions, traces and critiques are data. They fill a template but are never read as
one, and special tokens that occur in them are broken up before anything is tokenised.
"""

import re
import string
from collections.abc import Collection, Sequence
from datetime import date
from functools import cache
from typing import TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sdcore.config import PromptsConfig
from sdcore.errors import ConfigError
from sdcore.jinja_sandbox import render
from sdcore.models.examples import EXAMPLES
from sdcore.traces import is_tag_piece

Tokenizer: TypeAlias = PreTrainedTokenizerBase
Message = dict[str, str]

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: "
    "{{ message.content }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Chat template of a tokenizer that has none: `User: ...`, an empty line, `Assistant:`."""

_PLAIN_TURN = re.compile(  # "Assistant:", " user :" at the start of any kind of line
    r"(?i)((?:^|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029])\s*[aus])(ssistant|ser|ystem)(?=\s*:)"
)
_MARKER = re.compile(
    r"<[^<>\s]+>|\[/?[A-Z_]+\]"
)  # </think>, <|call|>, <｜end｜>, [/INST]; not <, [1]
_COMMON_MARKER = re.compile(  # <|im_end|>, <｜User｜>; </think>; <eos>; <end_of_turn>; [/INST]
    r"(?=<\|[^<>|\s]{2,}\|>|<｜[^<>｜\s]+｜>"
    r"|</?(?:think|tool_call|tool_response|s)>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_\w+>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK)\]|<</?SYS>>)(.)"
)

_TEMPLATE_FAILURES = (  # what expressions of a template may raise
    TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
    RecursionError,
)  # fmt: skip

FROZEN_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- set written = namespace(text=format) -%}"
    "{%- for directive, text in TEXTS.items() -%}"
    "{%- set written.text = written.text.replace(directive, text) -%}"
    "{%- endfor -%}{{ written.text }}{%- endmacro %}"
)
"""A clock that stands still; TEXTS are what the directives of strftime give."""

# What a probe prompt must show. Digits survive `upper`, `trim` and the like.
QUESTION, CONTEXT, SYSTEM, ANSWER = "7130249586", "6058392417", "8207461935", "4916820573"


def freeze_clock(tokenizer: Tokenizer, day: date) -> None:
    """Make the chat template's `strftime_now` return this day, at midnight, whenever it renders.

    Llama 3, SmolLM3, Granite and others put the date into the prompt, so that the same question
    would have another prompt tomorrow. transformers replaces every function among the arguments of
    `apply_chat_template` by its name, so the clock is hidden by a macro of the same name in front
    of the template.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        frozen = {name: _frozen(text, day) for name, text in templates.items()}
        tokenizer.chat_template = frozen
    elif templates is not None:
        tokenizer.chat_template = _frozen(templates, day)


def _frozen(template: str, day: date) -> str:
    if not _reads_clock(template):
        return template
    # "%-d" (no leading zero) before "%d"; a directive that strftime does not know stays as it is
    directives = [f"%{flag}{letter}" for flag in ("-", "") for letter in string.ascii_letters]
    texts = {directive: day.strftime(directive) for directive in directives}
    # transformers trims the newline after a block: the template begins at the start of a line
    return FROZEN_CLOCK.replace("TEXTS", repr(texts)) + "\n" + template


def _reads_clock(template: str) -> bool:
    return "strftime_now" in template and "macro strftime_now(" not in template


def student_prompt(tokenizer: Tokenizer, prompts: PromptsConfig, question: str) -> tuple[int, ...]:
    """Token ids that ask the student.

    Raises:
        ConfigError: a template does not render, or has no thinking mode where one is set.
    """
    messages = student_messages(prompts, question)
    return prompt_ids(tokenizer, messages, thinking=prompts.student_thinking)


def teacher_prompt(
    tokenizer: Tokenizer, prompts: PromptsConfig, question: str, context: str | None
) -> tuple[int, ...]:
    """Token ids that show the teacher the context; without one, the student's user message.

    The response must be as likely a continuation here as after the student's prompt. So the prompt
    ends as the student's does, whatever the teacher's thinking mode: for a student of Qwen3 that
    does not think, with a closed, empty thought.

    Raises:
        ConfigError: a template does not render, or has no thinking mode where one is set.
    """
    messages = teacher_messages(prompts, question, context)
    student, teacher = prompts.student_thinking, prompts.teacher_thinking
    if teacher is None or teacher == student:
        return prompt_ids(tokenizer, messages, thinking=student)
    asked = student_messages(prompts, question)
    before = _rendered(tokenizer, asked, thinking=student, continues=False)
    whole = _rendered(tokenizer, asked, thinking=student)
    if not whole.startswith(before):
        raise ConfigError(
            "the model's chat template does not allow a thinking mode of the teacher's own",
            got="a prompt that does not end with what the template adds for the response",
            fix="leave out prompts.teacher_thinking",
        )
    shown = _rendered(tokenizer, messages, thinking=teacher, continues=False)
    return _ids(tokenizer, shown + whole.removeprefix(before))


def student_messages(prompts: PromptsConfig, question: str) -> list[Message]:
    """Chat messages that ask the student: system message and worked examples where set.

    Raises:
        ConfigError: the template does not render.
    """
    return _messages(prompts.system, prompts, render(prompts.student, question=question))


def teacher_messages(prompts: PromptsConfig, question: str, context: str | None) -> list[Message]:
    """Chat messages that show the teacher the context; without one, the student's user message.

    The system message is the teacher's own where one is set, with or without a context.

    Raises:
        ConfigError: a template does not render.
    """
    text = render(prompts.student, question=question)
    if context:
        text = render(prompts.teacher, student=text, question=question, context=context)
    own = prompts.teacher_system
    return _messages(prompts.system if own is None else own, prompts, text)


def prompt_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    thinking: bool | None = None,
) -> tuple[int, ...]:
    """Token ids of a conversation that the model continues as the assistant.

    Args:
        tokenizer: its chat template is used, or `PLAIN_TEMPLATE` where it has none.
        messages: role and content; special tokens in a content are broken up.
        thinking: `enable_thinking` of the chat template; None leaves it to the template.

    Raises:
        ConfigError: the chat template refuses the messages, has no thinking mode, or reads a clock
            that is not frozen.
    """
    return _ids(tokenizer, _rendered(tokenizer, messages, thinking=thinking))


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_of_turn(tokenizer: Tokenizer, end_ids: Collection[int]) -> int:
    """Return the end id with which the chat template closes an assistant's turn.

    Llama 3, for example, has the end ids `<|end_of_text|>`, `<|eom_id|>` and `<|eot_id|>`, and its
    template closes a turn with the last. A template that closes it with none of the end ids, as
    `PLAIN_TEMPLATE`, leaves the tokenizer's end token, or else the first end id.

    Raises:
        ConfigError: the chat template refuses the messages.
    """
    turn = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    _, _, closing = _rendered(tokenizer, turn, continues=False).rpartition(ANSWER)
    closing_ids = tokenizer(closing, add_special_tokens=False)["input_ids"]
    candidates: list[int] = [*closing_ids, tokenizer.eos_token_id, *end_ids]
    return next(each for each in candidates if each in end_ids)


def require_shown(tokenizer: Tokenizer, prompts: PromptsConfig) -> None:
    """Refuse prompts that do not show the student the question or the teacher the context.

    Both prompts are rendered once with numbers in place of what they are to show.

    Raises:
        ConfigError: a template leaves out the question, the context or the system message, or does
            not render.
    """
    system = {name: SYSTEM for name in ("system", "teacher_system") if getattr(prompts, name)}
    probes = prompts.model_copy(update=system)
    student = student_messages(probes, QUESTION)
    teacher = teacher_messages(probes, QUESTION, CONTEXT)
    _require_written("question", QUESTION, student, "prompts.student")
    _require_written("context", CONTEXT, teacher, "prompts.teacher")
    _require_written("question", QUESTION, teacher, "prompts.teacher")
    for messages, thinking, what in (
        (student, prompts.student_thinking, QUESTION),
        (teacher, prompts.teacher_thinking, CONTEXT),
    ):
        text = _rendered(tokenizer, messages, thinking=thinking)
        given = [(each["role"], neutralise(each["content"], tokenizer)) for each in messages]
        if lost := [role for role, content in given if not _holds(text, content)]:
            raise ConfigError(
                "the model's chat template leaves out what it is given",
                got=f"a prompt without the {' and the '.join(dict.fromkeys(lost))} message: {text}",
                where="chat_template",
                fix="repair the chat template in the model's folder; one without a system message "
                "needs prompts.system and prompts.teacher_system left out",
            )
        read = tokenizer.decode(_ids(tokenizer, text))
        if not _holds(read, what):
            raise ConfigError(
                "the model's tokenizer loses what it is given",
                got=f"a prompt that reads, from its tokens: {read}",
                expected=f"{what} in it",
                where="tokenizer.json",
                fix="put the tokenizer that belongs to the model into its folder",
            )


def _holds(text: str, part: str) -> bool:
    """Return whether a text holds another one, spaces and line breaks aside."""
    return "".join(part.split()) in "".join(text.split())


def _require_written(name: str, value: str, messages: Sequence[Message], where: str) -> None:
    message = messages[-1]["content"]
    if value not in message:
        whole = " or {{ student }}" if where == "prompts.teacher" and name == "question" else ""
        raise ConfigError(
            f"the prompt does not show the {name}",
            got=message,
            where=where,
            fix=f"write {{{{ {name} }}}}{whole} where the template always renders it whole",
        )


def _rendered(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    thinking: bool | None = None,
    continues: bool = True,
) -> str:
    """The conversation as text; `continues` adds the header of the assistant's next turn."""
    template = str(tokenizer.chat_template)
    if thinking is not None and "enable_thinking" not in template:
        raise ConfigError(
            "the model's chat template has no thinking mode",
            got=f"enable_thinking = {thinking}",
            fix="leave out prompts.student_thinking and prompts.teacher_thinking",
        )
    if _reads_clock(template):
        raise ConfigError(
            "the model's chat template reads the clock: prompts would change from day to day",
            got="strftime_now",
            fix="load the tokenizer with the day that it is to show: load_tokenizer(folder, day)",
        )
    safe = [
        message | {"content": neutralise(message["content"], tokenizer)} for message in messages
    ]
    switches = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text: str = tokenizer.apply_chat_template(
            safe,
            chat_template=None if tokenizer.chat_template else PLAIN_TEMPLATE,
            add_generation_prompt=continues,
            tokenize=False,
            **switches,
        )
        text.encode()  # a template can make halves of characters, which no tokenizer reads
    except _TEMPLATE_FAILURES as error:
        refused = isinstance(error, TemplateError)
        raise ConfigError(
            "the model's chat template refuses the messages",
            got=error if refused else f"{type(error).__name__}: {error}",
            where=f"roles {', '.join(message['role'] for message in messages)}",
            fix="some models know no system message: leave prompts.system out",
        ) from error
    return text


def neutralise(text: str, tokenizer: Tokenizer | None = None) -> str:
    """Break up what a model takes for control, with a space after its first character.

    So `<|im_end|>` in a question becomes `< |im_end|>` and cannot end the user's turn, nor can
    `</think>` end a thought. Without a chat template turns are plain text: there a line that
    begins with `Assistant:` becomes `A ssistant:`. Other text is unchanged.

    Args:
        text: a question, a trace or the like.
        tokenizer: the model's; where it is out of reach, behind an endpoint, the markers that
            models commonly have are broken up.
    """
    if tokenizer is None:
        return _COMMON_MARKER.sub(r"\1 ", text)
    safe = _start_of(frozenset(_control_tokens(tokenizer))).sub(r"\1 ", text)
    return safe if tokenizer.chat_template else _PLAIN_TURN.sub(r"\1 \2", safe)


def _control_tokens(tokenizer: Tokenizer) -> set[str]:
    """Special tokens and added ones that look like markers, except for the tags of a trace.

    Some tokenizers name only some special tokens in a role such as eos, and many do not mark
    `</think>` or `<tool_call>` as special. Added tokens of other forms are text: words, runs of
    spaces, digits.
    """
    added = tokenizer.added_tokens_decoder.values()
    control = {
        token.content for token in added if token.special or _MARKER.fullmatch(token.content)
    }
    return {token for token in {*tokenizer.all_special_tokens, *control} if not is_tag_piece(token)}


@cache
def _start_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """The first character of each occurrence of a token, overlapping ones too."""
    return re.compile(f"(?={'|'.join(map(re.escape, sorted(tokens))) or '(?!)'})(.)", re.DOTALL)


def _messages(system: str | None, prompts: PromptsConfig, text: str) -> list[Message]:
    turns = [("system", system)] if system else []
    for question, trace in EXAMPLES[: prompts.examples]:
        turns += [("user", render(prompts.student, question=question)), ("assistant", trace)]
    return [{"role": role, "content": content} for role, content in (*turns, ("user", text))]
