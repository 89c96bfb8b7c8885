"""Solutions whose first wrong step is known: what a critic is measured on."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcore.config import ProblemsConfig
from sdcore.critics.corruption import (
    Solution,
    corrupted_arithmetic,
    corrupted_gsm8k,
    gsm8k_solution,
)
from sdcore.errors import DataError
from sdcore.grading.answers import grade
from sdcore.grading.equations import false_equation
from sdcore.problems.arithmetic import generate_problems, reference_solution
from sdcore.problems.sources import Record, origin, read_jsonl, read_records
from sdcore.traces import parse_trace, render_trace


@dataclass(frozen=True)
class Trial:
    """One solution and the truth about it, as the table `critic_trials` keeps it."""

    source: str
    question: str
    text: str  # step-tagged
    reference: str | None
    correct: bool
    first_wrong_step: int | None
    solution: str | None = None  # worked reference solution


def make_trials(config: ProblemsConfig, count: int, seed: int) -> list[Trial]:
    """Right and corrupted solutions by turns, of different problems.

    Raises:
        DataError: the file has too few worked solutions with GSM8K's calculator notes.
    """
    rng = random.Random(seed)  # noqa: S311
    if config.source == "arithmetic":
        problems = generate_problems(count, seed, holdout=True, family=config.arithmetic)
        return [
            _trial(
                f"arithmetic, seed {seed}", problem.question, str(problem.answer),
                corrupted_arithmetic(problem, rng, wrong=index % 2 == 1),
                reference_solution(problem),
            )
            for index, problem in enumerate(problems)
        ]  # fmt: skip
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
    """Solutions in ProcessBench's format (arXiv 2412.06559), a JSONL row each.

    A row has `problem`, `steps` (texts), `label` (index of the first wrong step from 0, -1 where
    all are right) and `final_answer_correct`; `answer`, the reference's, where it is known.

    Raises:
        DataError: the file cannot be read, or a row is not of this format.
    """
    return [_processbench_trial(source, record) for source, record in read_jsonl(path)]


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
        and type(label) is int
        and -1 <= label < len(steps)
        and isinstance(correct, bool)
    ):
        raise DataError(
            "row is not in ProcessBench's format",
            got=json.dumps(record),
            expected="problem, steps, label (-1 or an index of steps) and final_answer_correct",
            where=source,
        )
    final = parse_trace(steps[-1]).answer
    text = render_trace(steps, final or "").removesuffix("<answer></answer>")
    if [step.text for step in parse_trace(text).steps] != steps:
        raise DataError("a step holds step tags of its own", got=text, where=source)
    answer = record.get("answer") or (final if correct else None)
    return Trial(
        source, question, text, None if answer is None else str(answer), correct,
        None if label < 0 else label + 1,
    )  # fmt: skip
