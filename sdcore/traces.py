"""Step-tagged traces: parse, render, and assign each token to a part of the trace it is."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise, zip_longest
from typing import Literal, Protocol

from sdcore.errors import DataError

RegionName = Literal["before", "at", "after", "tag", "answer", "other"]
Span = tuple[int, int]
Label = tuple[int | None, RegionName]  # step, and part of the trace

_TAG = re.compile(r"<(?P<slash>/?)(?P<name>step_[1-9]\d{0,3}|answer)>")
_TAG_PIECE = re.compile(  # </step_12>, <answer>, and pieces of them: <step_, </, _1>, step, >
    r"</?(?:step(?:_(?:\d+>?)?)?|answer>?)?|/?(?:step(?:_(?:\d+>?)?)?|answer>?)|_(?:\d+>?)?|\d*>|\d+"
)
_BOX = r"\boxed{"
_BRACE = re.compile(r"\\boxed\{|\\[{}]|[{}]")  # the middle one, so that escaped braces are skipped
_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)


class Region(IntEnum):
    """Position of a token relative to the first error; see `relative_regions`."""

    BEFORE, AT, AFTER, ANSWER = range(4)


@dataclass(frozen=True)
class Step:
    """One step: the number in its tag, its content, and where in the text the content is."""

    number: int
    text: str
    start: int
    end: int
    closed: bool  # its closing tag follows

    @property
    def outer_end(self) -> int:
        """End of the step, closing tag included."""
        return self.end + len(f"</step_{self.number}>") * self.closed


@dataclass(frozen=True)
class Trace:
    """A parsed trace; `steps` are in the order of the text, whatever their tags say."""

    text: str
    steps: tuple[Step, ...]
    answer: str | None  # None where there is none or it is blank
    answer_span: Span | None  # content of the answer's tag or box
    tags: tuple[Span, ...]
    well_formed: bool
    flaw: str | None  # the first thing that is wrong with the form

    @property
    def sound(self) -> int:
        """Leading steps whose form is right: numbered from 1, closed, only white space between."""
        starts = [0, *(step.outer_end for step in self.steps)]
        for index, (step, gap_start) in enumerate(zip(self.steps, starts, strict=False)):
            gap = self.text[gap_start : step.start - len(f"<step_{step.number}>")]
            if step.number != index + 1 or not step.closed or gap.strip():
                return index
        return len(self.steps)


class Token(Protocol):
    """One token that was added to a vocabulary."""

    content: str
    special: bool


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that `response_text` and `token_offsets` need."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Token]:
        """Added tokens by id."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Token ids as text."""
        ...


def parse_trace(text: str) -> Trace:
    """Parse a trace; truncated or malformed text keeps all that can be read.

    A step reaches from its opening tag to the next tag or the end. The answer is the last closed
    ``<answer>``, else the last closed ``\\boxed``. Never raises, and takes linear time.
    """
    tags = list(_TAG.finditer(text))
    steps = tuple(_step(text, tags, i) for i, tag in enumerate(tags) if tag[0].startswith("<step"))
    span = _answer_span(tags) or _boxed_span(text)
    answer = text[slice(*span)].strip() if span else ""
    flaw = _flaw(text, tags, bool(answer))
    spans = tuple(tag.span() for tag in tags)
    return Trace(text, steps, answer or None, span, spans, flaw is None, flaw)


def render_trace(steps: Sequence[str], answer: str, first: int = 1) -> str:
    """Put step contents, numbered from `first`, and the final answer into their tags."""
    tagged = [f"<step_{number}>{step}</step_{number}>" for number, step in enumerate(steps, first)]
    return "".join(tagged) + f"<answer>{answer}</answer>"


def render_rest(trace: Trace, kept: int) -> str:
    """The trace from the step after the first `kept` ones on, as it stands in the text."""
    start = trace.steps[kept - 1].outer_end if kept else 0
    return trace.text[start:].strip()


def is_tag_piece(token: str) -> bool:
    """Return whether a token is a trace's tag, or a piece of one, apart from white space."""
    return _TAG_PIECE.fullmatch(token.strip()) is not None


def response_text(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Return the text of a response, without end, padding and other control tokens.

    These are the tokens that the tokenizer marks as special, except for the tags of a trace: some
    tokenizers mark ``<step_1>`` or ``<answer>`` as special, and they are text nevertheless.
    """
    control = _control_ids(tokenizer)
    return _decoded(tokenizer, token_ids, control)


def token_offsets(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[Span]:
    """Return where each token is in ``response_text(tokenizer, token_ids)``.

    Tokens that share a character (byte-level tokenizers split some) share its span; a control
    token has an empty one. Each token is decoded together with the few before it, so that decoders
    that look at neighbours are followed and ordinary text takes linear time.
    """
    ids, spans, control = list(token_ids), list[Span](), _control_ids(tokenizer)
    text = _decoded(tokenizer, ids, control)
    anchor, known, end = 0, "", 0  # `known` is the text of the tokens from the anchor on, placed
    for index in range(len(ids)):
        window = _decoded(tokenizer, ids[anchor : index + 1], control)
        piece = window.removeprefix(known)
        whole = window.startswith(known) and not window.endswith(_REPLACEMENT)
        if whole and text.startswith(piece, end):
            anchor, start, end = len(spans), end, end + len(piece)
            spans += [(start, end)] * (index + 1 - anchor)
            known = _decoded(tokenizer, ids[anchor : index + 1], control)
    return spans + [(end, len(text))] * (len(ids) - len(spans))


def _control_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(i for i, token in added if token.special and not is_tag_piece(token.content))


def _decoded(tokenizer: Tokenizer, token_ids: Sequence[int], control: frozenset[int]) -> str:
    kept = [token_id for token_id in token_ids if token_id not in control]
    return tokenizer.decode(kept, skip_special_tokens=False)


def token_regions(
    trace: Trace, offsets: Sequence[Span], first_wrong_step: int | None
) -> list[Label]:
    """Step and region of each token; one that straddles belongs where most of it lies.

    Steps are counted from 1 in the order of the text (in a well-formed trace that is the number in
    the tag). The content of a step is before, at or after `first_wrong_step`, and all before where
    there is none. ``answer`` is the content of the answer's tag or box outside of steps.

    Raises:
        DataError: the offsets are those of another text.
    """
    if offsets and offsets[-1][1] != len(trace.text):
        raise DataError("token offsets do not fit the trace", got=offsets[-1], expected=trace.text)
    labels: list[Label] = [(None, "other")] * len(trace.text)
    if trace.answer_span:
        _paint(labels, trace.answer_span, (None, "answer"))
    for number, step in enumerate(trace.steps, 1):
        _paint(labels, (step.start, step.end), (number, _region(number, first_wrong_step)))
    for tag in trace.tags:
        _paint(labels, tag, (None, "tag"))
    return [_majority(labels[start:end]) for start, end in offsets]


def relative_regions(
    trace: Trace, offsets: Sequence[Span], first_wrong_step: int | None
) -> list[Region]:
    """Region of each token relative to the first error, tags and spaces included.

    Unlike in `token_regions`, a step reaches from its opening tag to the next one, and the answer
    from its tag to the end. A token without text, such as the end token, is where the one before it
    is. With `first_wrong_step` = steps + 1, the steps are right and the answer is AT the error.

    Raises:
        DataError: the offsets are those of another text.
    """
    if offsets and offsets[-1][1] != len(trace.text):
        raise DataError("token offsets do not fit the trace", got=offsets[-1], expected=trace.text)
    places = [Region.BEFORE] * len(trace.text)
    for number, step in enumerate(trace.steps, 1):
        opened = step.start - len(f"<step_{step.number}>")
        region = Region[_region(number, first_wrong_step).upper()]
        places[opened:] = [region] * (len(places) - opened)
    if trace.answer_span and all(trace.answer_span[0] >= step.end for step in trace.steps):
        content = trace.answer_span[0]
        begin = next((start for start, end in trace.tags if end == content), content - len(_BOX))
        is_error = first_wrong_step == len(trace.steps) + 1
        places[begin:] = [Region.AT if is_error else Region.ANSWER] * (len(places) - begin)
    found = [Region.BEFORE]
    for start, end in offsets:
        found.append(Counter(places[start:end]).most_common(1)[0][0] if end > start else found[-1])
    return found[1:]


def _step(text: str, tags: list[re.Match[str]], index: int) -> Step:
    tag, after = tags[index], tags[index + 1 : index + 2]
    end = after[0].start() if after else len(text)
    closed = bool(after) and after[0][0] == tag[0].replace("<", "</")
    number = int(tag["name"].removeprefix("step_"))
    return Step(number, text[tag.end() : end], tag.end(), end, closed)


def _answer_span(tags: list[re.Match[str]]) -> Span | None:
    """Content of the last closed answer tag."""
    spans = [
        (opening.end(), closing.start())
        for opening, closing in pairwise(tags)
        if (opening[0], closing[0]) == ("<answer>", "</answer>")
    ]
    return spans[-1] if spans else None


def _boxed_span(text: str) -> Span | None:
    """Content of the last box that is closed."""
    open_braces: list[int | None] = []  # where a box's content starts; None for other braces
    span = None
    for brace in _BRACE.finditer(text):
        if brace[0] == "}" and open_braces:
            start = open_braces.pop()
            span = span if start is None else (start, brace.start())
        elif brace[0] in ("{", _BOX):
            open_braces.append(brace.end() if brace[0] == _BOX else None)
    return span


def _flaw(text: str, tags: list[re.Match[str]], has_answer: bool) -> str | None:
    count = sum(tag[0].startswith("<step") for tag in tags)
    names = [*(f"step_{number}" for number in range(1, count + 1)), "answer"]
    expected = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    for wanted, found in zip_longest(expected, (tag[0] for tag in tags)):
        if wanted != found:
            return f"{wanted or 'the end'} expected, {found or 'the end'} found"
    edges = [0, *(edge for tag in tags for edge in tag.span()), len(text)]
    outside = zip(edges[::4], edges[1::4], strict=True)  # up to, between and after tagged contents
    if any(text[start:end].strip() for start, end in outside):
        return "text outside the tags"
    return None if count and has_answer else "no steps" if has_answer else "the answer is blank"


def _region(number: int, first_wrong: int | None) -> RegionName:
    if first_wrong is None or number < first_wrong:
        return "before"
    return "at" if number == first_wrong else "after"


def _paint(labels: list[Label], span: Span, label: Label) -> None:
    labels[slice(*span)] = [label] * (span[1] - span[0])


def _majority(labels: list[Label]) -> Label:
    return Counter(labels).most_common(1)[0][0] if labels else (None, "other")
