"""Where questions come from: our arithmetic family, or a JSONL file of any provenance."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from sdcore.arithmetic import generate_problems, reference_solution
from sdcore.config import ArithmeticConfig, ProblemsConfig
from sdcore.errors import DataError
from sdcore.schema import TABLES, content_key

Row = dict[str, Any]

SPLITS = ("test", "validation", "train")  # in this order: a larger train split moves no test row

DEFAULT_SOLUTION = "solution"  # the one key that a row may lack: not every source has solutions

_log = logging.getLogger(__name__)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K's <<48/2=24>>
_FINAL = re.compile(r"^####.*$", re.MULTILINE)  # GSM8K's answer line


def load_problems(config: ProblemsConfig) -> pl.DataFrame:
    """The problems of all splits: the columns of the table `problems` without experiment_id.

    The same settings give the same rows, and no question is in two splits.

    Raises:
        DataError: the file cannot be read, a row is bad, or there are too few problems.
    """
    counts = {split: getattr(config, split) for split in SPLITS}
    total = sum(counts.values())
    if config.path is None:
        rows = _arithmetic(total, config.seed, config.arithmetic)
    else:
        read = (_problem(record, config, source) for source, record in read_jsonl(config.path))
        rows = _shuffled(_distinct(read, config.path.name), config.seed)
    if len(rows) < total:
        raise DataError(
            "too few problems",
            got=f"{len(rows)} distinct ones in {config.path or config.source}",
            expected=f"{total}: " + ", ".join(f"{count} {name}" for name, count in counts.items()),
            mend="make problems.train, problems.validation or problems.test smaller",
        )
    places = [(split, position) for split in SPLITS for position in range(counts[split])]
    placed = [
        row | {"split": split, "position": position}
        for row, (split, position) in zip(rows, places, strict=False)
    ]
    dtypes = {name: dtype for name, dtype in TABLES["problems"].dtypes.items() if name in placed[0]}
    return pl.DataFrame(placed, schema=dtypes)


def _arithmetic(count: int, seed: int, family: ArithmeticConfig) -> list[Row]:
    source = f"arithmetic, seed {seed}, row"
    drawn = generate_problems(count, seed, holdout=True, family=family)
    return [
        _row(each.question, reference_solution(each), str(each.answer), f"{source} {number}")
        for number, each in enumerate(drawn, 1)
    ]


def read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    """Where it is, and the object, for each line of a JSONL file that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = path.read_text("utf-8").split("\n")  # splitlines() would cut inside strings
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the file cannot be read", got=error, where=str(path)) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path.name}, row {number}", _object(line, f"{path.name}, row {number}")


def _object(line: str, source: str) -> Row:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError("row is not JSON", got=error, where=source) from error
    if not isinstance(record, dict):
        raise DataError("row is not an object", got=line, where=source)
    return record


def _problem(record: Row, config: ProblemsConfig, source: str) -> Row:
    answer = _text(record, config.answer, source)
    solution = None
    if config.solution in record or config.solution != DEFAULT_SOLUTION:
        solution = _clean(_text(record, config.solution, source))
    return _row(
        _text(record, config.question, source), solution, _final(answer, config, source), source
    )


def _text(record: Row, key: str, source: str) -> str:
    """The value of a key as text, without white space around it."""
    value = record.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"row has no text under {key!r}",
            got=repr(value) if key in record else f"the keys {', '.join(record)}",
            where=source,
            mend="problems.question, problems.solution and problems.answer name the keys",
        )
    return value.strip()


def _final(answer: str, config: ProblemsConfig, source: str) -> str:
    if config.answer_pattern is None:
        return answer
    match = re.search(config.answer_pattern, answer)
    if match is None or not (match[1] or "").strip():
        raise DataError(
            "answer does not fit problems.answer_pattern",
            got=answer,
            expected=config.answer_pattern,
            where=source,
        )
    return str(match[1]).strip()


def _clean(solution: str) -> str:
    """A worked solution as it is shown: without calculator notes and the bare answer's line."""
    return _FINAL.sub("", _CALCULATOR.sub("", solution)).strip()


def _row(question: str, solution: str | None, answer: str, source: str) -> Row:
    return {
        "problem_id": content_key(question, answer),
        "question": question,
        "solution": solution,
        "answer": answer,
        "source": source,
    }


def _distinct(rows: Iterable[Row], name: str) -> list[Row]:
    """The first row of each question, however it is spaced and capitalised."""
    read = list(rows)
    kept: dict[str, Row] = {}
    for row in read:
        kept.setdefault(" ".join(row["question"].split()).casefold(), row)
    if len(kept) < len(read):
        _log.warning("%s: left out %d repeated questions", name, len(read) - len(kept))
    return list(kept.values())


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    """An order that depends on content and seed only, not on the order of the file."""
    return sorted(rows, key=lambda row: content_key(seed, row["problem_id"]))
