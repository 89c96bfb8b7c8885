"""Tells rows that can be used from rows that cannot, and says why not."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from sdcore.config import ProblemsConfig
from sdcore.errors import DataError
from sdcore.grading.answers import MAX_LENGTH, readable_many
from sdcore.problems.duplicates import near_duplicates, normalised
from sdcore.problems.sources import Record, origin
from sdcore.store.schema import content_key

LONGEST = {"question": 20_000, "solution": 200_000, "answer": MAX_LENGTH}  # characters
EXAMPLES = 3  # bad rows that an error shows
EXCERPT = 200  # characters

DEFAULT_SOLUTION = "solution"  # the one key that a row may lack: not every source has solutions

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K's <<48/2=24>>
_FINAL = re.compile(r"^####.*$", re.MULTILINE)  # GSM8K's answer line
_THINKING = re.compile(r"^.*</think>", re.DOTALL)  # OpenMathReasoning's solutions think first


@dataclass(frozen=True)
class Problem:
    """A usable row."""

    number: int  # of the row
    question: str
    solution: str | None
    reference: str
    source: str

    @property
    def problem_id(self) -> str:
        """Key derived from content."""
        return content_key(self.question, self.reference)

    @property
    def columns(self) -> dict[str, object]:
        """What the table `problems` holds of it."""
        return {
            "problem_id": self.problem_id,
            "question": self.question,
            "solution": self.solution,
            "reference": self.reference,
            "source": self.source,
        }


@dataclass(frozen=True)
class Rejection:
    """A row that became no problem."""

    number: int
    kind: Literal["bad", "duplicate", "overlap"]
    reason: str
    content: str

    @property
    def columns(self) -> dict[str, object]:
        """What the table `rejected_problems` holds of it."""
        reason, excerpt = _storable(self.reason), _storable(self.content[:EXCERPT])
        return {"row": self.number, "kind": self.kind, "reason": reason, "excerpt": excerpt}


def screen(
    records: Iterable[tuple[int, Record]], config: ProblemsConfig
) -> tuple[list[Problem], list[Rejection]]:
    """Problems and rejections, together one for each record.

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
    repeated = _repeated(problems, config.checks.near_duplicate)
    kept = [problem for problem in problems if problem.number not in repeated]
    return kept, sorted([*bad, *repeated.values()], key=lambda each: each.number)


def _examined(number: int, record: Record, config: ProblemsConfig) -> Problem | Rejection:
    try:
        return _problem(number, record, config)
    except DataError as error:
        content = record if isinstance(record, str) else json.dumps(record, default=str)
        return Rejection(number, "bad", error.what, content)


def _problem(number: int, record: Record, config: ProblemsConfig) -> Problem:
    """A usable row.

    Raises:
        DataError: it is not; the message's first part says why.
    """
    if isinstance(record, str):
        raise DataError(record[:EXCERPT])
    solution = None
    if record.get(config.solution) is not None or config.solution != DEFAULT_SOLUTION:
        solution = _clean(_text(record, "solution", config.solution))
    final = _final(_text(record, "answer", config.answer), config.answer_pattern)
    question = _text(record, "question", config.question)
    for name, text in {"question": question, "solution": solution, "answer": final}.items():
        if len(text or "") > LONGEST[name]:
            raise DataError(f"the {name} has {len(text or '')} characters")
    return Problem(number, question, solution, final, f"{origin(config)}, row {number}")


def _text(record: Any, name: str, key: str) -> str:
    """The value of a key as text, without white space around it."""
    value = record.get(key)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise DataError(f"the {name} under {key!r} is {value}")
        return str(value)
    if value is None:
        raise DataError(f"no {name} under {key!r}; the keys are {', '.join(map(str, record))}")
    if not isinstance(value, str):
        raise DataError(f"the {name} under {key!r} is no text but {type(value).__name__}")
    if not value.strip():
        raise DataError(f"the {name} under {key!r} is empty")
    if "\ufffd" in value or _storable(value) != value:
        raise DataError(f"the {name} under {key!r} has bytes that are no UTF-8")
    return value.strip()


def _storable(text: str) -> str:
    """With a question mark for each half of a character, which JSON can have and UTF-8 cannot."""
    return text.encode("utf-8", errors="replace").decode()


def _final(answer: str, pattern: str | None) -> str:
    if pattern is None:
        return answer
    match = re.search(pattern, answer)
    if match is None or not (match[1] or "").strip():
        raise DataError(f"the answer does not fit problems.answer_pattern: {answer[-EXCERPT:]}")
    return str(match[1]).strip()


def _clean(solution: str) -> str:
    """A worked solution as it is shown: without thinking, calculator notes, bare answer line."""
    return _FINAL.sub("", _CALCULATOR.sub("", _THINKING.sub("", solution))).strip()


def _readable(rows: list[Problem | Rejection]) -> list[Problem | Rejection]:
    """Problems whose answer cannot be read as mathematics are bad rows."""
    answers = [row.reference for row in rows if isinstance(row, Problem)]
    known = dict(zip(answers, readable_many(answers), strict=True))
    return [
        Rejection(row.number, "bad", f"the answer cannot be parsed: {row.reference}", row.question)
        if isinstance(row, Problem) and not known[row.reference]
        else row
        for row in rows
    ]


def _repeated(problems: list[Problem], bound: float) -> dict[int, Rejection]:
    """Problems that repeat an earlier one, exactly or nearly, by row number."""
    first: dict[str, Problem] = {}
    found: dict[int, Rejection] = {}
    for each in problems:
        earlier = first.setdefault(normalised(each.question), each)
        if earlier is not each:
            found[each.number] = _duplicate(each, f"repeats row {earlier.number}")
    distinct = list(first.values())
    for index, other in near_duplicates(
        [(e.question, e.reference) for e in distinct], bound
    ).items():
        reason = f"says nearly the same as row {distinct[other].number}"
        found[distinct[index].number] = _duplicate(distinct[index], reason)
    return found


def _duplicate(problem: Problem, reason: str) -> Rejection:
    return Rejection(problem.number, "duplicate", reason, problem.question)


def _too_many(bad: list[Rejection], total: int, config: ProblemsConfig) -> DataError:
    reasons = Counter(each.reason for each in bad)
    shown = [next(each for each in bad if each.reason == reason) for reason in reasons]
    examples = [f"row {e.number}: {e.reason} [{e.content[:EXCERPT]}]" for e in shown[:EXAMPLES]]
    return DataError(
        "too many rows are bad",
        got=f"{len(bad)} of {total}\n    " + "\n    ".join(examples),
        expected=f"at most {config.checks.bad_share:.1%}",
        where=origin(config),
        fix="problems.question, problems.solution and problems.answer name the columns; "
        "problems.checks.bad_share bounds the share",
    )
