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
_TRIED = (_CONVERSATION[1:2], _CONVERSATION[:2], _CONVERSATION[1:], _CONVERSATION)


def require_bounded(template: str, folder: Path) -> None:
    """Refuse a chat template that is endless, random, or makes far more text than it is given.

    It is rendered in a process of its own. What it refuses or gets wrong shows when it is used.

    Raises:
        ModelError: it is no text, takes too much time or memory, or it or its text is too long; or
            the same messages give another prompt each time.
    """
    if not isinstance(template, str):
        raise ModelError(
            "the model's chat template is not text", got=repr(template), where=str(folder)
        )
    found = (len(template), False) if len(template) > LARGEST else _tried(template)
    if isinstance(found, Exceeded) or found[0] > LARGEST:
        raise ModelError(
            "the model's chat template does not end, or is far too long",
            got=found.reason
            if isinstance(found, Exceeded)
            else f"{found[0]} characters, of the template or of a short conversation",
            expected=f"at most {LARGEST} characters, within a second",
            where=str(folder),
            fix=_REPAIR,
        )
    if found[1]:
        raise ModelError(
            "the model's chat template gives the same messages another prompt each time",
            got="the filter random, or lipsum()",
            expected="a template without them",
            where=str(folder),
            fix=_REPAIR,
        )


@cache
def _tried(template: str) -> tuple[int, bool] | Exceeded:
    (found,) = run_bounded(f"{__name__}:tried", [(template,)])
    assert isinstance(found, tuple | Exceeded)
    return found


def tried(template: str) -> tuple[int, bool]:
    """Return the characters of the longest of a few short conversations, and whether it is random.

    What fails is left out: with the same messages it fails, or is not endless, where it is used.
    """
    environment = _environment()
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
    return max(sizes), _is_random(environment, template)


def _is_random(environment: ImmutableSandboxedEnvironment, template: str) -> bool:
    try:
        tree = environment.parse(template)
    except (TemplateError, RecursionError):  # shows when it is used
        return False
    filters = {each.name for each in tree.find_all(nodes.Filter)}
    return "random" in filters or "lipsum" in {each.name for each in tree.find_all(nodes.Name)}


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
