"""A procedural family of word problems in which every quantity is known.

In the manner of GSM-Symbolic (arXiv 2410.05229) a question is put together from a story's sentences
with drawn numbers and names; in the manner of iGSM (arXiv 2407.20311) the sentences define a graph
of quantities first, from which question, answer and reference solution are derived. All values are
exact fractions. No two quantities of a problem are equal, so that a number in a solution stands for
one of them.

A story (`stories.toml`) has a sentence per kind of fact; no sentence is in two stories. Kinds are
the operations of the family, see `KINDS`.
"""

import hashlib
import random
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from itertools import islice
from typing import Any

from sdcore.config import WordProblemsConfig
from sdcore.errors import DataError
from sdcore.traces import render_trace

USUAL = WordProblemsConfig()
WARMUP_BUCKETS = 4  # one problem in 4 is kept for warm-ups, and in no split
TRIES = 500  # draws in a row that give no new problem, after which a family counts as exhausted
DRAFTS = 200  # of a problem with a given number of steps, of which many have no fitting numbers
NOISE = 3  # sentences of a story that have nothing to do with the question
CONSTANTS = (Fraction(0), Fraction(1), Fraction(100))  # numbers that a solution may bring in
RESULTS = 50  # a result is at most this many times as large as the largest number of a question

NAMES = (
    "Amara", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana", "Ivan", "Jonas", "Kofi",
    "Leila", "Mateo", "Nadia", "Olga", "Pablo", "Quinn", "Rosa", "Samir", "Tara", "Uma", "Viktor",
)  # fmt: skip
PARTS = {3: "a third", 4: "a quarter", 5: "a fifth"}
"""Forms of {x} in a sentence of the kind `fraction`."""

STYLES = {
    "told": "{facts} {ask}",
    "asked": "{ask} This is known: {facts}",
    "listed": "{facts}\n\n{ask}",
}
"""Layouts of facts and question; the facts of `listed` are lines of a list."""


@dataclass(frozen=True)
class Kind:
    """A kind of fact, and what follows from one.

    Attributes:
        operations: operator and operands of each quantity that it adds. Operands are the fact's
            numbers ``x`` and ``y``, the running quantity ``main`` of the facts before, and
            ``last``, the one added before. The last one added becomes ``main``. ``%`` is a
            percentage.
        meanings: what each added quantity counts; ``{items}`` is the story's.
        after: the states in which it may come.
        state: the state that it leads to; the question of a state is ``ask_`` and its name.
    """

    operations: tuple[tuple[str, str, str], ...]
    meanings: tuple[str, ...]
    after: str = "count"
    state: str = "count"

    @property
    def steps(self) -> int:
        """Return the number of steps that its solution needs."""
        return len(self.operations)


_ADD, _SUBTRACT = ("+", "main", "last"), ("-", "main", "last")
_PRODUCT = (("*", "x", "y"),)
KINDS: Mapping[str, Kind] = {
    "groups": Kind(_PRODUCT, ("{items} at first",), "start"),
    "kinds": Kind((("+", "x", "y"),), ("{items} at first",), "start"),
    "rate": Kind(_PRODUCT, ("{items} at first",), "start"),
    "lose": Kind((("-", "main", "x"),), ("{items} left",)),
    "gain": Kind((("+", "main", "x"),), ("{items} by then",)),
    "packs": Kind((*_PRODUCT, _ADD), ("{items} added", "{items} with those")),
    "daily": Kind((*_PRODUCT, _SUBTRACT), ("{items} used up", "{items} that remain")),
    "fraction": Kind((("/", "main", "x"), _SUBTRACT), ("{items} of that part", "{items} not lost")),
    "percent": Kind((("%", "main", "x"), _SUBTRACT), ("{items} that go", "{items} that stay")),
    "times": Kind((("*", "main", "x"), _ADD), ("{items} of the other", "{items} together")),
    "more": Kind((("+", "main", "x"), _ADD), ("{items} of the other", "{items} together")),
    "fewer": Kind((("-", "main", "x"), _ADD), ("{items} of the other", "{items} together")),
    "share": Kind((("/", "main", "x"),), ("{items} per share",), state="share"),
    "bags": Kind((("/", "main", "x"),), ("full groups of {items}",), state="bags"),
    "price": Kind((("*", "main", "x"),), ("dollars for the {items}",), state="money"),
    "minus": Kind((("-", "main", "x"),), ("dollars after the cost",), "money", "money"),
    "plus": Kind((("+", "main", "x"),), ("dollars in all",), "money", "money"),
    "tax": Kind(
        (("%", "main", "x"), _SUBTRACT), ("dollars taken off", "dollars kept"), "money", "money"
    ),
    "goal": Kind((("-", "x", "main"),), ("dollars missing",), "money", "goal"),
    "split": Kind((("/", "main", "x"),), ("dollars per person",), "money", "split"),
}
_DIVIDED: Mapping[str, tuple[str, Sequence[int]]] = {
    "fraction": ("/", sorted(PARTS)), "percent": ("%", range(5, 100, 5)),
    "tax": ("%", range(5, 100, 5)), "share": ("/", ()), "bags": ("/", ()), "split": ("/", ()),
}  # fmt: skip
COUNTED = {"plus", "minus", "goal"}  # kinds whose number is an amount of dollars


@dataclass(frozen=True)
class Fact:
    """A sentence of a question: its kind, from `KINDS` or ``noise0`` to ``noise2``, and numbers."""

    kind: str
    numbers: tuple[Fraction, ...]


@dataclass(frozen=True)
class Quantity:
    """A node of the graph.

    Attributes:
        value: exact and positive.
        meaning: what it counts; empty for a number of the question.
        unit: the story's items, ``dollars`` or nothing.
        operation: ``+ - * /`` or ``%`` (so many per cent of); empty for a number of the question.
        operands: places of two earlier quantities.
    """

    value: Fraction
    meaning: str = ""
    unit: str = ""
    operation: str = ""
    operands: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """A step of a solution: two values, what is done with them, and the result."""

    operation: str
    left: Fraction
    right: Fraction
    result: Fraction
    meaning: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Story:
    """The words of a story: sentences by kind, `ask_` and the state for the questions."""

    name: str
    items: str
    sentences: Mapping[str, str]

    @cached_property
    def patterns(self) -> Mapping[str, re.Pattern[str]]:
        """A regular expression per sentence, with its numbers and names as groups."""
        return {kind: _pattern(kind, text) for kind, text in self.sentences.items()}


@dataclass(frozen=True)
class Problem:
    """A word problem: a story, a style, the persons, and facts in the order of the question."""

    story: str
    style: str
    name: str
    other: str  # empty where no fact needs one
    facts: tuple[Fact, ...]

    @cached_property
    def quantities(self) -> tuple[Quantity, ...]:
        """The graph, in the order of the facts; the answer is the last with an operation."""
        made: list[Quantity] = []
        main = -1
        items = stories()[self.story].items
        for fact in self.facts:
            places = {"main": main, "last": -1}
            for name, number in zip("xy", fact.numbers, strict=False):
                places[name] = len(made)
                made.append(Quantity(number))
            if fact.kind not in KINDS:
                continue
            kind = KINDS[fact.kind]
            for (operation, *operands), meaning in zip(kind.operations, kind.meanings, strict=True):
                left, right = (places[operand] for operand in operands)
                value = computed(operation, made[left].value, made[right].value)
                unit = "dollars" if kind.state in ("money", "goal", "split") else items
                about = meaning.format(items=items)
                made.append(Quantity(value, about, unit, operation, (left, right)))
                places["last"] = len(made) - 1
            main = len(made) - 1
        return tuple(made)

    @cached_property
    def needed(self) -> tuple[int, ...]:
        """Places of the quantities from which the answer follows, the answer last."""
        wanted = [max(place for place, each in enumerate(self.quantities) if each.operation)]
        for place in wanted:
            wanted += [each for each in self.quantities[place].operands if each not in wanted]
        return tuple(sorted(wanted))

    @property
    def answer(self) -> Fraction:
        """The value that is asked for."""
        return self.quantities[self.needed[-1]].value

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of a solution, in the order of the question."""
        return tuple(self.step(place) for place in self.needed if self.quantities[place].operation)

    def step(self, place: int) -> Step:
        """The step that computes a quantity."""
        made = self.quantities[place]
        left, right = (self.quantities[operand].value for operand in made.operands)
        return Step(made.operation, left, right, made.value, made.meaning, made.unit)

    @cached_property
    def question(self) -> str:
        """The problem as text."""
        story = stories()[self.story]
        facts = [self._sentence(story, fact) for fact in self.facts]
        state = next(KINDS[fact.kind].state for fact in self.facts[::-1] if fact.kind in KINDS)
        ask = story.sentences[f"ask_{state}"].format(name=self.name)
        listed = "\n".join(f"- {fact}" for fact in facts)
        told = listed if self.style == "listed" else " ".join(facts)
        return STYLES[self.style].format(facts=told, ask=ask)

    def _sentence(self, story: Story, fact: Fact) -> str:
        written = (
            [PARTS[int(number)] for number in fact.numbers]
            if fact.kind == "fraction"
            else [
                _written(number, cents=fact.kind in (*COUNTED, "price")) for number in fact.numbers
            ]
        )
        slots = dict(zip("xy", written, strict=False))
        return story.sentences[fact.kind].format(name=self.name, other=self.other, **slots)

    @property
    def held_out(self) -> bool:
        """True if a warm-up must never see this problem."""
        digest = hashlib.sha256(self.question.encode()).hexdigest()
        return int(digest[:16], 16) % WARMUP_BUCKETS != 0


@cache
def stories() -> Mapping[str, Story]:
    """The stories by name."""
    text = (files("sdcore.problems") / "stories.toml").read_text("utf-8")
    return {name: _story(name, table) for name, table in tomllib.loads(text).items()}


def _story(name: str, table: dict[str, Any]) -> Story:
    sentences = {key: text for key, text in table.items() if key not in ("items", "noise")}
    sentences |= {f"noise{place}": text for place, text in enumerate(table["noise"])}
    return Story(name, table["items"], sentences)


def draw_problems(
    seed: int | str,
    *,
    holdout: bool,
    family: WordProblemsConfig = USUAL,
    of: Sequence[str] | None = None,
) -> Iterator[Problem]:
    """Draw distinct problems until hardly any is new, from one side of the hold-out cut.

    Args:
        seed: the same seed gives the same problems.
        holdout: whether they are kept from warm-ups.
        family: how hard they are.
        of: names of the stories; None for all.
    """
    rng = random.Random(seed)  # noqa: S311
    names, seen, idle = sorted(stories() if of is None else of), set[str](), 0
    while idle < TRIES:
        idle += 1
        steps = rng.randint(family.fewest_steps, family.most_steps)
        drafts = (_drafted(rng, stories()[rng.choice(names)], steps, family) for _ in range(DRAFTS))
        problem = next(filter(None, drafts), None)
        if problem and problem.held_out == holdout and problem.question not in seen:
            seen.add(problem.question)
            idle = 0
            yield problem


def split_stories(seed: int, test: float, validation: float) -> dict[str, tuple[str, ...]]:
    """Deal the stories to the splits: shares of them, at least one each, by a shuffle."""
    names = sorted(stories())
    random.Random(f"stories {seed}").shuffle(names)  # noqa: S311
    first = min(max(1, round(test * len(names))), len(names) - 2)
    second = min(first + max(1, round(validation * len(names))), len(names) - 1)
    parts = {"test": names[:first], "validation": names[first:second], "train": names[second:]}
    return {split: tuple(part) for split, part in parts.items()}


def problems_of(
    counts: Mapping[str, int],
    seed: int,
    family: WordProblemsConfig,
    of: Mapping[str, Sequence[str]],
) -> Iterator[Problem]:
    """Draw the problems of each split in turn, each from stories of its own; all are held out."""
    for split, count in counts.items():
        drawn = draw_problems(f"{split} {seed}", holdout=True, family=family, of=of[split])
        yield from islice(drawn, count)


@lru_cache(maxsize=4096)
def parse_question(text: str) -> Problem:
    """Parse a question of this family.

    Raises:
        DataError: the text is not a question of this family.
    """
    for story in stories().values():
        for style in STYLES:
            problem = _parsed(text.strip(), story, style)
            if problem and problem.question == text.strip():
                return problem
    raise DataError("not a word problem of this family", got=text)


def computed(operation: str, left: Fraction, right: Fraction) -> Fraction:
    """The result of an operation, exactly."""
    match operation:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
    return left * right / 100


def as_text(number: Fraction) -> str:
    """A number with a finite decimal expansion as text: ``12``, ``2.5``."""
    if number.denominator == 1:
        return str(number)
    return f"{float(number):.6f}".rstrip("0").rstrip(".")


Wording = Callable[[Step], str]


def _templates(add: str, subtract: str, multiply: str, divide: str, percent: str) -> Wording:
    texts = {"+": add, "-": subtract, "*": multiply, "/": divide, "%": percent}

    def phrase(step: Step) -> str:
        return texts[step.operation].format(
            x=as_text(step.left), y=as_text(step.right), r=as_text(step.result),
            meaning=step.meaning, unit=step.unit,
        )  # fmt: skip

    return phrase


def around(frame: str, times: str = "*", by: str = "/") -> Wording:
    """A wording with an equation: the frame holds EXPRESSION, and {r}, {meaning} and {unit}."""
    texts = ("{x} + {y}", "{x} - {y}", f"{{x}} {times} {{y}}", f"{{x}} {by} {{y}}",
             f"{{x}} {times} {{y}} {by} 100")  # fmt: skip
    return _templates(*(frame.replace("EXPRESSION", text) for text in texts))


WORDINGS: Mapping[str, Wording] = {
    "formula": around("EXPRESSION = {r}"),
    "labelled": around("{meaning}: EXPRESSION = {r}"),
    "typeset": around("EXPRESSION = {r} {unit}", "×", "÷"),
    "latex": around(r"\(EXPRESSION = {r}\)", r"\times", r"\div"),
    "sentence": around("So the number of {meaning} is EXPRESSION = {r}."),
    "money": _templates(
        "${x} + ${y} = ${r}", "${x} - ${y} = ${r}", "{x} x ${y} = ${r}", "${x} / {y} = ${r}",
        "{y}% of ${x} = ${r}",
    ),
    "spoken": _templates(
        "{x} plus {y} is {r}", "{x} minus {y} is {r}", "{x} times {y} is {r}",
        "{x} divided by {y} is {r}", "{y}% of {x} is {r}",
    ),
    "verbose": _templates(
        "Adding {y} gives {x} + {y} = {r} {meaning}.", "Taking {y} away gives {x} - {y} = {r}.",
        "In all that makes {x} multiplied by {y} equals {r}.", "Each part has {x} / {y} = {r}.",
        "{y} percent are {y}/100 * {x} = {r}.",
    ),
}  # fmt: skip
"""Wordings of a step, for warm-ups, for solutions that critics are measured on, and for tests."""

REFERENCE_WORDING = _templates(
    "{r} = {y} + {x}, which are the {meaning}", "{r} = {x} - {y}, which are the {meaning}",
    "{r} = {y} * {x}, which are the {meaning}", "{r} = {x} / {y}, which are the {meaning}",
    "{r} = {y} / 100 * {x}, which are the {meaning}",
)  # fmt: skip


def solve(problem: Problem, wording: str) -> list[str]:
    """Return the steps of a correct trace, in the order of the question."""
    return [WORDINGS[wording](step) for step in problem.steps]


def remaining(problem: Problem, results: Collection[Fraction]) -> list[Step]:
    """The steps that lead from results at hand to the answer, in the order of the question."""
    wanted = [problem.needed[-1]]
    for place in wanted:
        made = problem.quantities[place]
        if made.operation and made.value not in results:
            wanted += [each for each in made.operands if each not in wanted]
    missing = (place for place in sorted(wanted) if problem.quantities[place].operation)
    return [problem.step(p) for p in missing if problem.quantities[p].value not in results]


def reference_steps(problem: Problem) -> list[Step]:
    """The steps of a solution in another order: as early as possible what needs no other step."""
    places = [place for place in problem.needed if problem.quantities[place].operation]
    ready = set[int](range(len(problem.quantities))) - set(places)
    ordered: list[int] = []
    while len(ordered) < len(places):
        waiting = [place for place in places if place not in ready]
        chosen = max(p for p in waiting if {*problem.quantities[p].operands} <= ready)
        ordered.append(chosen)
        ready.add(chosen)
    return [problem.step(place) for place in ordered]


def sample(count: int, seed: int = 0) -> str:
    """Return generated problems with answers and reference solutions, in Markdown."""
    drawn = islice(draw_problems(seed, holdout=True), count)
    return "\n".join(map(_shown, range(1, count + 1), drawn))


def _shown(number: int, problem: Problem) -> str:
    lines = problem.question.replace("\n\n", "\n").splitlines()
    question = "<br>".join(line.replace("$", "\\$") for line in lines)
    steps = "; ".join(REFERENCE_WORDING(step) for step in reference_steps(problem))
    return f"{number}. {question}<br>*{steps}.* **{as_text(problem.answer)}**"


def reference_solution(problem: Problem) -> str:
    """Return a correct trace in an order and wording that no trace of `solve` has."""
    steps = [REFERENCE_WORDING(step) for step in reference_steps(problem)]
    return render_trace(steps, as_text(problem.answer))


def _drafted(
    rng: random.Random, story: Story, left: int, family: WordProblemsConfig
) -> Problem | None:
    """A problem with so many steps; None where no numbers fit."""
    facts, state, used = list[Fact](), "start", set[str]()
    value = Fraction(0)
    while left:
        kinds = _possible(story, state, left, used)
        if not kinds:
            return None
        name = rng.choice(kinds)
        numbers = _numbers(rng, name, value, family)
        if numbers is None:
            return None
        facts.append(Fact(name, numbers))
        used.add(name)
        left, state = left - KINDS[name].steps, KINDS[name].state
        value = Problem(story.name, "told", "A", "B", tuple(facts)).answer
    if f"ask_{state}" not in story.sentences:
        return None
    for noise in rng.sample(range(NOISE), family.distractors):
        place = rng.randint(1, len(facts))
        number = Fraction(rng.randint(3, family.largest))
        facts.insert(place, Fact(f"noise{noise}", (number,)))
    name, other = rng.sample(NAMES, 2)
    needs_other = any("{other}" in story.sentences[fact.kind] for fact in facts)
    style = rng.choice(sorted(STYLES))
    problem = Problem(story.name, style, name, other if needs_other else "", tuple(facts))
    return problem if _fits(problem, family) else None


def _possible(story: Story, state: str, left: int, used: set[str]) -> list[str]:
    """Kinds that may come next; a state that nothing follows must leave no step to do."""
    return [
        name
        for name, kind in KINDS.items()
        if name in story.sentences and name not in used and kind.after == state
        and kind.steps <= left
        and (kind.state in ("count", "money") or kind.steps == left)
    ]  # fmt: skip


def _numbers(
    rng: random.Random, kind: str, value: Fraction, family: WordProblemsConfig
) -> tuple[Fraction, ...] | None:
    """Numbers of a fact after facts that come to `value`; None where none fit."""
    top = family.largest
    drawn: tuple[int, ...]
    few = max(3, min(12, top // 3))  # a number of groups, or of what is in one
    match kind:
        case "groups" | "packs" | "daily":
            drawn = (rng.randint(2, few), rng.randint(2, few))
        case "rate":
            drawn = (rng.randint(2, top), rng.randint(2, few))
        case "kinds":
            drawn = (rng.randint(2, top), rng.randint(2, top))
        case "lose" | "gain" | "more" | "fewer":
            drawn = (rng.randint(2, top),)
        case "times":
            drawn = (rng.randint(2, 5),)
        case "fraction" | "percent" | "tax" | "share" | "bags" | "split":
            operation, possible = _DIVIDED[kind]
            fitting = [
                number
                for number in possible or range(2, few + 1)
                if _plain(computed(operation, value, Fraction(number)), kind, family)
            ]
            if not fitting:
                return None
            drawn = (rng.choice(fitting),)
        case "goal":
            drawn = (int(value) + rng.randint(2, top),)
        case _:  # price, plus, minus
            dollars = rng.randint(2, few if kind == "price" else top)
            cents = Fraction(rng.choice((0, 25, 50, 75)), 100) if family.decimals else Fraction(0)
            return (dollars + cents,)
    return tuple(map(Fraction, drawn))


def _plain(value: Fraction, kind: str, family: WordProblemsConfig) -> bool:
    """Return whether a value can be counted: whole, or dollars and cents with decimals."""
    money = KINDS[kind].state in ("money", "goal", "split")
    return (value * (100 if money and family.decimals else 1)).denominator == 1


def _fits(problem: Problem, family: WordProblemsConfig) -> bool:
    """Return whether all values are positive, countable, not too large, of one quantity each."""
    values = [each.value for each in problem.quantities]
    countable = (
        (each.value * (100 if each.unit == "dollars" and family.decimals else 1)).denominator == 1
        for each in problem.quantities
        if each.operation
    )
    return (
        min(values) > 0
        and max(values) <= RESULTS * family.largest
        and len({*values, *CONSTANTS}) == len(values) + len(CONSTANTS)
        and all(countable)
    )


def _written(number: Fraction, *, cents: bool) -> str:
    return f"{float(number):.2f}" if cents and number.denominator > 1 else as_text(number)


def _pattern(kind: str, sentence: str) -> re.Pattern[str]:
    number = "|".join(PARTS.values()) if kind == "fraction" else r"\d+(?:\.\d+)?"
    groups = {
        "{x}": f"(?P<x>{number})", "{y}": f"(?P<y>{number})",
        "{name}": r"(?P<name>[A-Z][a-z]+)", "{other}": r"(?P<other>[A-Z][a-z]+)",
    }  # fmt: skip
    pieces = re.split(r"(\{\w+\})", sentence)
    text, seen = "", set[str]()
    for piece in pieces:
        group = groups.get(piece)
        if group is None:
            text += re.escape(piece)
        else:
            text += f"(?P={piece[1:-1]})" if piece in seen else group
            seen.add(piece)
    return re.compile(text)


def _parsed(text: str, story: Story, style: str) -> Problem | None:
    """The problem whose sentences a text has, one after the other; None where there is none."""
    names: dict[str, str] = {}
    facts: list[Fact] = []
    opening = STYLES[style].partition("{facts}")[0]
    at = 0
    if "{ask}" in opening:
        after = opening.partition("{ask}")[2]
        at = text.find(after) + len(after)
        if at < len(after):
            return None
    while at < len(text):
        rest = text[at:].lstrip("- \n")
        at = len(text) - len(rest)
        matches = ((kind, pattern.match(text, at)) for kind, pattern in story.patterns.items())
        kind, match = next(((k, m) for k, m in matches if m), ("", None))
        if match is None:
            return None
        found = match.groupdict()
        names |= {key: found[key] for key in ("name", "other") if key in found}
        if not kind.startswith("ask_"):
            facts.append(Fact(kind, tuple(_number(found[key]) for key in "xy" if key in found)))
        at = match.end()
    if not any(fact.kind in KINDS for fact in facts) or "name" not in names:
        return None
    try:
        problem = Problem(story.name, style, names["name"], names.get("other", ""), tuple(facts))
        return problem if problem.question else None
    except (KeyError, ArithmeticError):  # facts in an order that the family never has
        return None


def _number(text: str) -> Fraction:
    parts = {word: Fraction(number) for number, word in PARTS.items()}
    return parts[text] if text in parts else Fraction(text)
