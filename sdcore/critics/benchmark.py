"""Solutions whose first wrong step is known, to measure critics on."""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcore.config import SOURCES, ProblemsConfig
from sdcore.critics.corruption import Solution, corrupted_gsm8k, gsm8k_solution
from sdcore.errors import DataError
from sdcore.grading.answers import grade
from sdcore.grading.equations import NUMBER, false_equation
from sdcore.problems.screening import storable
from sdcore.problems.sources import Record, origin, read_jsonl, read_records
from sdcore.registry import import_path
from sdcore.traces import parse_trace, render_trace

_ANSWER = re.compile(r"\banswer(?: is|:)+ ?:?\s*(.*?)[.\s]*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Trial:
    """A solution and the truth about it, as the table `critic_trials` keeps it."""

    source: str
    question: str
    text: str  # step-tagged
    reference: str | None
    correct: bool
    first_wrong_step: int | None
    solution: str | None = None  # worked reference solution
    blind: bool = False  # the critic is told neither the reference nor whether the answer is right


def make_trials(config: ProblemsConfig, count: int, seed: int) -> list[Trial]:
    """Make right and corrupted solutions in turn, of different problems.

    Raises:
        DataError: the file has too few worked solutions with GSM8K's calculator notes.
    """
    if own := SOURCES[config.source].exercises:
        source = f"{config.source}, seed {seed}"
        return [
            _trial(source, each.question, each.reference, each.solved, each.solution)
            for each in import_path(own)(config, count, seed)
        ]
    rng = random.Random(seed)  # noqa: S311
    rows = [(f"{origin(config)}, row {number}", row) for number, row in read_records(config)]
    rng.shuffle(rows)
    trials: list[Trial] = []
    for source, record in rows:
        if len(trials) < count:
            trials += _gsm8k_trial(source, record, config, rng, wrong=len(trials) % 2 == 1)
    if len(trials) < count:
        raise DataError(
            "too few worked solutions that can be corrupted",
            got=f"{len(trials)} of {len(rows)} rows",
            expected=f"{count}, with notes such as <<48/2=24>> under {config.solution!r}",
            where=origin(config),
        )
    return trials


def read_processbench(path: Path) -> list[Trial]:
    """Read solutions in ProcessBench's format (arXiv 2412.06559).

    The file is one JSON array, as published, or has one object per line. A row has `problem`,
    `steps` (texts), `label` (index of the first wrong step from 0, -1 where all are right) and
    `final_answer_correct`; `answer`, the reference's, where it is known. As in ProcessBench's own
    evaluation, critics see the problem and the steps only: the trials are blind.

    Raises:
        DataError: the file cannot be read, or a row is not of this format.
    """
    return [_processbench_trial(source, record) for source, record in _rows(path)]


def balanced(trials: Sequence[Trial], count: int, seed: int) -> list[Trial]:
    """Draw wrong and right solutions in equal numbers, in the order that they have.

    Where one kind is too rare, the other fills up.
    """
    rng = random.Random(seed)  # noqa: S311
    order = rng.sample(range(len(trials)), len(trials))
    wrong = [place for place in order if trials[place].first_wrong_step is not None]
    right = [place for place in order if trials[place].first_wrong_step is None]
    share = max(min(len(wrong), count - count // 2), count - len(right))
    return [trials[place] for place in sorted(wrong[:share] + right[: count - share])]


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place and object of each row of a JSON array or a JSONL file."""
    try:
        text = path.read_text("utf-8-sig").lstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the file cannot be read", got=error, where=str(path)) from error
    if not text.startswith("["):
        yield from read_jsonl(path)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("the file is not a JSON array", got=error, where=str(path)) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                "bad row", got=row, expected="an object", where=f"{path.name}, row {number}"
            )
        yield f"{path.name}, row {number}", row


def _trial(
    source: str, question: str, reference: str, found: Solution, solution: str | None
) -> Trial:
    return Trial(
        source=source,
        question=question,
        text=render_trace(found.steps, found.answer),
        reference=reference,
        correct=grade(found.answer, reference).correct,
        first_wrong_step=found.first_wrong_step,
        solution=solution,
    )


def _gsm8k_trial(
    source: str, record: Record, config: ProblemsConfig, rng: random.Random, *, wrong: bool
) -> list[Trial]:
    """At most one trial; none where the row is bad, or its solution cannot be corrupted."""
    if isinstance(record, str):
        return []
    question, worked = str(record.get(config.question, "")), str(record.get(config.solution, ""))
    right = gsm8k_solution(worked)
    if any(map(false_equation, right.steps)):
        return []  # the truth would not be known
    found = corrupted_gsm8k(question, worked, rng) if wrong else right
    if found is None or not right.steps or not right.answer:
        return []
    return [_trial(source, question, right.answer, found, render_trace(right.steps, right.answer))]


def _processbench_trial(source: str, record: Mapping[str, Any]) -> Trial:
    steps, label = record.get("steps"), record.get("label")
    correct, question = record.get("final_answer_correct"), record.get("problem")
    if not (
        isinstance(question, str)
        and isinstance(steps, list)
        and steps
        and all(isinstance(step, str) for step in steps)
        and all(storable(text) == text for text in (question, *steps))
        and type(label) is int
        and -1 <= label < len(steps)
        and isinstance(correct, bool)
    ):
        raise DataError(
            "row is not in ProcessBench's format",
            got=json.dumps(record),
            expected="problem, steps, label (-1 or an index of steps) and final_answer_correct, "
            "in UTF-8",
            where=source,
        )
    final = _final_answer(steps)
    text = render_trace(steps, final)
    if [step.text for step in parse_trace(text).steps] != steps:
        raise DataError("a step holds step tags of its own", got=text, where=source)
    answer = record.get("answer")
    reference = str(answer) if answer is not None else final if correct else None
    wrong = None if label < 0 else label + 1
    return Trial(source, question, text, reference, correct, wrong, blind=True)


def _final_answer(steps: Sequence[str]) -> str:
    """The last box; without one what follows "answer is", the last number, or the last step."""
    for step in reversed(steps):
        if boxed := parse_trace(step).answer:
            return boxed
    last = steps[-1].strip()
    stated = _ANSWER.findall(last) or NUMBER.findall(last)
    return stated[-1].strip() if stated else last
