"""The sections of an experiment file, read from its JSON schema: for the reference and for hints.

The schema is the one description of the file that covers unions and free names alike.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcore.errors import did_you_mean

NAME = "<name>"  # stands for a name that the file is free to choose, as in conditions.<name>
Node = Mapping[str, Any]  # part of a JSON schema

_TYPES = {"string": "text", "boolean": "true or false", "array": "list", "object": "table"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Setting:
    """One setting: the values it takes, its default (`required` if it has none), its meaning.

    `set_by` is the mark of a setting that a form may not set (`file`) or not to code of one's own
    (`name`); the others have none.
    """

    name: str
    values: str
    default: str
    meaning: str
    set_by: str = ""


@dataclass(frozen=True)
class Section:
    """One section, such as ``conditions.<name>``.

    `choice` is the setting that selects it where a section has several forms, such as
    ``objective = "grpo"``.
    """

    path: tuple[str, ...]
    choice: str
    meaning: str
    settings: tuple[Setting, ...]


def sections(schema: Node) -> list[Section]:
    """Return every section of the file, the top level first."""
    found = _sections(schema, (), "", "", schema.get("$defs", {}))
    return list(dict.fromkeys(found))  # the forms of a section may share one


def suggestion(schema: Node, setting: Sequence[str]) -> str:
    """Return "did you mean …?" for an unknown setting, or nothing if none is like it.

    Args:
        schema: of the whole file.
        setting: the names of its path.

    The closest name in the same section comes first, then the same name in another section.
    """
    *parent, leaf = setting
    known = sections(schema)
    places = {(*section.path, item.name) for section in known for item in section.settings}
    places |= {section.path for section in known if section.path}
    beside = {place[len(parent)] for place in places if _is_below(place, parent)}
    if hint := did_you_mean(leaf, beside - {NAME, leaf}):
        return hint
    if leaf in beside:  # it belongs to another form of the section, such as another objective
        return ""
    elsewhere = sorted(".".join(place) for place in places if place[-1] == leaf)
    return f"did you mean {' or '.join(elsewhere)}?" if elsewhere else ""


def _is_below(place: Sequence[str], parent: Sequence[str]) -> bool:
    pairs = zip(place, parent, strict=False)
    return len(place) > len(parent) and all(own in (NAME, name) for own, name in pairs)


def _sections(
    node: Node, path: tuple[str, ...], choice: str, about: str, definitions: Node
) -> Iterator[Section]:
    """The section of an object, then those inside it."""
    settings, inside = list[Setting](), list[Section]()
    for name, field in node["properties"].items():
        where, forms = (*path, name), list(_forms(field, definitions))
        if free := [value for form in forms for value in _values(form)]:
            forms = [form for value in free for form in _forms(value, definitions)]
            where += (NAME,)
        objects = [form for form in forms if "properties" in form]
        for form in objects:
            chosen = _chosen(form) if len(objects) > 1 else ""
            inside += _sections(form, where, chosen, field.get("description", ""), definitions)
        if len(objects) < len(forms) or not forms:
            required = name in node.get("required", ())
            settings.append(_setting(name, field, required=required, definitions=definitions))
    meaning = " ".join(" ".join([node.get("description", ""), about and f"({about})"]).split())
    yield Section(path, choice, meaning, tuple(settings))
    yield from inside


def _forms(node: Node, definitions: Node) -> Iterator[Node]:
    """The forms that a value may take, references resolved; that it may be absent is no form."""
    if "$ref" in node:
        yield from _forms(definitions[node["$ref"].rpartition("/")[2]], definitions)
    elif choices := node.get("anyOf", node.get("oneOf")):
        for choice in choices:
            yield from _forms(choice, definitions)
    elif node.get("type") != "null":
        yield node


def _values(node: Node) -> list[Node]:
    """Describe the values of a table with free names."""
    more = node.get("additionalProperties")
    return [
        *node.get("patternProperties", {}).values(),
        *([more] if isinstance(more, dict) else []),
    ]


def _chosen(node: Node) -> str:
    """The setting that distinguishes one form of a section from the others."""
    fixed = (
        (name, field["const"]) for name, field in node["properties"].items() if "const" in field
    )
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in fixed)


def _setting(name: str, field: Node, *, required: bool, definitions: Node) -> Setting:
    kinds = dict.fromkeys(_kind(form, definitions) for form in _forms(field, definitions))
    values = " or ".join(kinds)
    default = field.get("default")
    shown = "absent" if default is None else json.dumps(default, ensure_ascii=False)
    meaning = " ".join(field.get("description", "").split())
    set_by = str(field.get("x-sdcore-set", ""))
    return Setting(name, values, "required" if required else shown, meaning, set_by)


def _kind(node: Node, definitions: Node) -> str:
    """The values of one form, such as ``list of integer ≥ 1``."""
    if "const" in node or "enum" in node:
        return ", ".join(json.dumps(value) for value in node.get("enum", [node.get("const")]))
    known = str(node.get("type", "anything"))
    kind = _TYPES.get(known, known)
    if inner := node.get("items") or next(iter(_values(node)), None):
        items = " or ".join(_kind(form, definitions) for form in _forms(inner, definitions))
        kind = f"{kind} of {items}"
    bounds = [f"{sign} {node[bound]:g}" for bound, sign in _BOUNDS.items() if bound in node]
    return " ".join([kind, ", ".join(bounds)]).strip()
