"""The chat template of a model is a stranger's program: it is tried in bounds before it is used."""

import json
from datetime import date
from functools import cache
from pathlib import Path

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdcore.errors import ModelError
from sdcore.grading.bounded import run_bounded
from sdcore.grading.worker import Exceeded

LARGEST = 1_000_000  # characters of a template, and of a conversation of three short messages
_TEXT = "What is 1 + 1? " * 100
_CONVERSATION = [
    {"role": "system", "content": _TEXT},
    {"role": "user", "content": _TEXT},
    {"role": "assistant", "content": _TEXT},
]
_REPAIR = "repair chat_template.jinja there, or chat_template in tokenizer_config.json"
_DRAWN = -1  # in place of a size: of a template that draws lots
_TRIED = (_CONVERSATION[1:2], _CONVERSATION[:2], _CONVERSATION[1:], _CONVERSATION)


def require_bounded(template: str, folder: Path) -> None:
    """Refuse a chat template that is endless, draws lots, or makes far more text than it is given.

    It is rendered in a process of its own. What it refuses or gets wrong shows when it is used.

    Raises:
        ModelError: it is no text, takes too much time or memory, or it or its text is too long; or
            the same messages give another prompt each time.
    """
    if not isinstance(template, str):
        raise ModelError(
            "the model's chat template is not text", got=repr(template), where=str(folder)
        )
    size = len(template) if len(template) > LARGEST else _rendered_size(template)
    if isinstance(size, Exceeded) or size > LARGEST:
        long = f"{size} characters, of the template or of a short conversation"
        raise ModelError(
            "the model's chat template does not end, or is far too long",
            got=size.reason if isinstance(size, Exceeded) else long,
            expected=f"at most {LARGEST} characters, within a second",
            where=str(folder),
            fix=_REPAIR,
        )
    if size == _DRAWN:
        raise ModelError(
            "the model's chat template gives the same messages another prompt each time",
            got="the filter random, or lipsum()",
            where=str(folder),
            fix=_REPAIR,
        )


@cache
def _rendered_size(template: str) -> int | Exceeded:
    (size,) = run_bounded(f"{__name__}:longest", [(template,)])
    assert isinstance(size, int | Exceeded)
    return size


def longest(template: str) -> int:
    """Return the number of characters of the longest of a few short conversations.

    A template that draws lots has the size `_DRAWN`. What fails is left out: with the same messages
    it fails, or is not endless, where it is used.
    """
    environment = _environment()
    if _draws(environment, template):
        return _DRAWN
    sizes = [0]
    for messages in _TRIED:
        for continues in (False, True):
            try:
                compiled = environment.from_string(template)
                text = compiled.render(messages=messages, add_generation_prompt=continues)
            except MemoryError:
                raise
            except Exception:  # noqa: S112 - whatever its expressions raise
                continue
            sizes.append(len(text))
    return max(sizes)


def _draws(environment: ImmutableSandboxedEnvironment, template: str) -> bool:
    try:
        tree = environment.parse(template)
    except (TemplateError, RecursionError):  # shows when it is used
        return False
    drawn = {each.name for each in tree.find_all(nodes.Filter)} & {"random"}
    return bool(drawn) or any(each.name == "lipsum" for each in tree.find_all(nodes.Name))


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what transformers renders chat templates in, without what loads torch."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = json.dumps
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = date(2000, 1, 1).strftime
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` is its content."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes of the content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
