"""Screen the rows of a source: each becomes a problem, or a rejection with its reason."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import regex

from sdcore.config import ProblemsConfig
from sdcore.errors import ConfigError, DataError
from sdcore.grading.answers import MAX_LENGTH, grade_many, readable_many
from sdcore.problems.duplicates import near_duplicates, normalised
from sdcore.problems.sources import Record, SpelledFloat, origin
from sdcore.store.schema import content_key

LONGEST = {"question": 20_000, "solution": 200_000, "answer": MAX_LENGTH}  # characters
EXAMPLES = 3  # bad rows that an error shows
EXCERPT = 200  # characters
PATTERN_SECONDS = 1.0  # of answer_pattern per answer: some patterns take hours over 40 characters

DEFAULT_SOLUTION = "solution"  # the one key that a row may lack: not every source has solutions

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K's <<48/2=24>>
_FINAL = re.compile(r"^####.*\Z", re.MULTILINE)  # GSM8K's answer line, the last one
_THINKING = re.compile(r"^.*</think>", re.DOTALL)  # OpenMathReasoning's solutions think first


@dataclass(frozen=True)
class Problem:
    """A usable row of a source."""

    number: int  # of the row, from 1
    question: str
    solution: str | None
    reference: str
    source: str
    template: str | None = None  # name of what it was made from

    @property
    def problem_id(self) -> str:
        """Key derived from question and reference answer."""
        return content_key(self.question, self.reference)

    @property
    def columns(self) -> dict[str, object]:
        """Columns of the table `problems` that follow from the row alone."""
        return {
            "problem_id": self.problem_id,
            "question": self.question,
            "solution": self.solution,
            "reference": self.reference,
            "source": f"{self.source}, {self.template}" if self.template else self.source,
        }


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be used, and why."""

    number: int
    kind: Literal["bad", "conflict", "duplicate", "overlap", "too long"]
    reason: str
    content: str

    @property
    def columns(self) -> dict[str, object]:
        """Columns of the table `rejected_problems`, without experiment and source."""
        reason, excerpt = storable(self.reason), storable(self.content[:EXCERPT])
        return {"row": self.number, "kind": self.kind, "reason": reason, "excerpt": excerpt}


def screen(
    records: Iterable[tuple[int, Record]], config: ProblemsConfig
) -> tuple[list[Problem], list[Rejection]]:
    """Turn every record into a problem or a rejection.

    Rows that ask the same question with answers that are not equal are all rejected as conflicts:
    which of them is right cannot be known. With equal answers, the first row is kept.

    Returns:
        Problems in the order of their rows, and rejections in the same order.

    Raises:
        DataError: more than `config.checks.bad_share` of the records are bad.
    """
    rows = [_examined(number, record, config) for number, record in records]
    if not config.checks.text_answers:
        rows = _readable(rows)
    bad = [row for row in rows if isinstance(row, Rejection)]
    if len(bad) > config.checks.bad_share * len(rows):
        raise _too_many(bad, len(rows), config)
    problems = [row for row in rows if isinstance(row, Problem)]
    distinct, repeated = _first_of_each(problems)
    similar = _near_repeats(distinct, config.checks.near_duplicate)
    kept = [problem for problem in distinct if problem.number not in similar]
    rejections = [*bad, *repeated, *similar.values()]
    return kept, sorted(rejections, key=lambda rejection: rejection.number)


def _examined(number: int, record: Record, config: ProblemsConfig) -> Problem | Rejection:
    try:
        return _problem(number, record, config)
    except DataError as error:
        content = record if isinstance(record, str) else json.dumps(record, default=str)
        return Rejection(number, "bad", error.what, content)


def _problem(number: int, record: Record, config: ProblemsConfig) -> Problem:
    """Read a record as a problem.

    Raises:
        DataError: the record cannot be used; `what` is the reason.
    """
    if isinstance(record, str):
        raise DataError(record[:EXCERPT])
    solution = None
    if record.get(config.solution) is not None or config.solution != DEFAULT_SOLUTION:
        solution = _clean(_text(record, "solution", config.solution)) or None
    final = _final(_text(record, "answer", config.answer), config.answer_pattern)
    if solution is None and config.solution != DEFAULT_SOLUTION:
        raise DataError(f"the solution under {config.solution!r} has nothing but an answer")
    question = _text(record, "question", config.question)
    for name, text in {"question": question, "solution": solution, "answer": final}.items():
        if len(text or "") > LONGEST[name]:
            raise DataError(f"the {name} has {len(text or '')} characters")
    template = None
    if config.split_by == "template":
        template = _text(record, "template", config.template)
    return Problem(number, question, solution, final, f"{origin(config)}, row {number}", template)


def _text(record: Any, name: str, key: str) -> str:
    """Return the value of a key as text, stripped.

    Raises:
        DataError: there is none, or it is neither text nor a finite number.
    """
    value = record.get(key)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _spelt(value, f"the {name} under {key!r}")
    if value is None:
        raise DataError(f"no {name} under {key!r}; the keys are {', '.join(map(str, record))}")
    if not isinstance(value, str):
        raise DataError(f"the {name} under {key!r} is no text but {type(value).__name__}")
    if not value.strip():
        raise DataError(f"the {name} under {key!r} is empty")
    if "\ufffd" in value or storable(value) != value:
        raise DataError(f"the {name} under {key!r} has bytes that are no UTF-8")
    return value.strip()


def _spelt(number: float | Decimal, where: str) -> str:
    """Return a number as its source spells it, else without an exponent: 0.00001, not 1e-05."""
    if isinstance(number, int):
        return str(number)
    if not math.isfinite(number):
        raise DataError(f"{where} is {number}")
    if isinstance(number, SpelledFloat):
        return str(number)
    return f"{Decimal(str(number)):f}"


def storable(text: str) -> str:
    """Replace lone surrogates, which JSON can express and UTF-8 cannot, by question marks."""
    return text.encode("utf-8", errors="replace").decode()


def _final(answer: str, pattern: str | None) -> str:
    if pattern is None:
        return answer
    try:
        match = regex.search(pattern, answer, timeout=PATTERN_SECONDS)
    except TimeoutError as error:
        raise ConfigError(
            "problems.answer_pattern takes too long to match",
            got=pattern,
            expected=f"at most {PATTERN_SECONDS:g} s per answer",
            where=f"the answer {answer[:EXCERPT]!r}",
            fix="leave out what can match in many ways, such as (a|aa)+ or .*.*",
        ) from error
    if match is None or not (match[1] or "").strip():
        raise DataError(f"the answer does not fit problems.answer_pattern: {answer[-EXCERPT:]}")
    return str(match[1]).strip()


def _clean(solution: str) -> str:
    """Remove thinking, calculator notes and the bare answer line from a worked solution."""
    return _FINAL.sub("", _CALCULATOR.sub("", _THINKING.sub("", solution)).rstrip()).strip()


def _readable(rows: list[Problem | Rejection]) -> list[Problem | Rejection]:
    """Reject problems whose answer cannot be read as mathematics."""
    answers = [row.reference for row in rows if isinstance(row, Problem)]
    known = dict(zip(answers, readable_many(answers), strict=True))
    return [
        Rejection(row.number, "bad", f"the answer cannot be parsed: {row.reference}", row.question)
        if isinstance(row, Problem) and not known[row.reference]
        else row
        for row in rows
    ]


def _first_of_each(problems: list[Problem]) -> tuple[list[Problem], list[Rejection]]:
    """Keep the first row of each question; reject its repetitions, or all rows in conflict."""
    groups: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[normalised(problem.question)].append(problem)
    pairs = [(other, first) for first, *others in groups.values() for other in others]
    grades = grade_many([o.reference for o, _ in pairs], [f.reference for _, f in pairs])
    deviating: dict[int, list[Problem]] = defaultdict(list)  # by the number of the first row
    for (other, first), grade in zip(pairs, grades, strict=True):
        if not grade.correct:
            deviating[first.number].append(other)
    kept, rejections = [], []
    for first, *others in groups.values():
        if first.number in deviating:
            rejections += [_conflict(p, first, deviating[first.number]) for p in (first, *others)]
        else:
            kept.append(first)
            rejections += [_duplicate(other, f"repeats row {first.number}") for other in others]
    return kept, rejections


def _conflict(problem: Problem, first: Problem, deviating: list[Problem]) -> Rejection:
    """Name the two rows that disagree: the first one, and this one where it deviates from it."""
    other = problem if problem in deviating else deviating[0]
    reason = (
        f"rows {first.number} and {other.number} ask the same question, with the answers "
        f"{first.reference} and {other.reference}"
    )
    return Rejection(problem.number, "conflict", reason, problem.question)


def _near_repeats(problems: list[Problem], bound: float) -> dict[int, Rejection]:
    """Reject problems that say nearly the same as an earlier one, by row number."""
    texts = [(problem.question, problem.reference) for problem in problems]
    return {
        problems[index].number: _duplicate(
            problems[index], f"says nearly the same as row {problems[earlier].number}"
        )
        for index, earlier in near_duplicates(texts, bound).items()
    }


def _duplicate(problem: Problem, reason: str) -> Rejection:
    return Rejection(problem.number, "duplicate", reason, problem.question)


def _too_many(bad: list[Rejection], total: int, config: ProblemsConfig) -> DataError:
    first_of_each = list({row.reason: row for row in reversed(bad)}.values())[::-1]
    examples = [
        f"row {row.number}: {row.reason} [{row.content[:EXCERPT]}]"
        for row in first_of_each[:EXAMPLES]
    ]
    pattern = config.answer_pattern
    within = (
        f", and problems.answer_pattern = {pattern!r} finds the answer in it" if pattern else ""
    )
    return DataError(
        "too many rows are bad",
        got=f"{len(bad)} of {total}\n    " + "\n    ".join(examples),
        expected=f"at most {config.checks.bad_share:.1%}",
        where=origin(config),
        fix=f"problems.question, problems.solution and problems.answer name the columns{within}; "
        "problems.checks.bad_share bounds the share",
    )
