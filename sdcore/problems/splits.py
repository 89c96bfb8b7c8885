"""Which rows of a source become problems, and in which split.

Rows that cannot be used are kept apart with the reason; a question's split is decided by its hash,
so that it keeps it when the source grows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import polars as pl

from sdcore.config import ProblemsConfig
from sdcore.errors import DataError
from sdcore.problems.arithmetic import generate_problems, reference_solution
from sdcore.problems.duplicates import normalised, overlapping
from sdcore.problems.screening import Problem, Rejection, screen
from sdcore.problems.sources import origin, read_records
from sdcore.store.schema import TABLES, content_key

GENERATED = ("arithmetic", "reasoning_gym")  # sources without end, whose problems share a template


@dataclass(frozen=True)
class Loaded:
    """Frames with the columns of the tables of the same names, without experiment_id."""

    problems: pl.DataFrame
    rejected_problems: pl.DataFrame


def load_problems(config: ProblemsConfig) -> Loaded:
    """The problems of all splits, and the rows that became none.

    The same settings give the same rows, and no question is in two splits.

    Raises:
        ConfigError: a generator or a library is missing.
        DataError: the source cannot be read, too many rows are bad, or there are too few problems.
    """
    if config.source == "arithmetic":
        splits, rejections = _dealt(_arithmetic(config), config), list[Rejection]()
    else:
        splits, rejections = sort_out(config)
    rows = [
        problem.columns | {"split": split, "position": position}
        for split in config.counts
        for position, problem in enumerate(_wanted(split, splits, config))
    ]
    rejected = [rejection.columns | {"source": origin(config)} for rejection in rejections]
    return Loaded(_frame("problems", rows), _frame("rejected_problems", rejected))


def sort_out(config: ProblemsConfig) -> tuple[dict[str, list[Problem]], list[Rejection]]:
    """Every usable problem of a source by split, in order, and a rejection for every other row.

    Raises:
        ConfigError: a generator or a library is missing.
        DataError: the source cannot be read, or too many of its rows are bad.
    """
    problems, rejections = screen(read_records(config), config)
    if config.source in GENERATED:
        return _dealt(problems, config), rejections
    ordered = sorted(problems, key=lambda each: content_key(config.seed, each.problem_id))
    splits: dict[str, list[Problem]] = {split: [] for split in config.counts}
    for problem in ordered:
        splits[_split(problem, config)].append(problem)
    leaked = _leaked(splits, config.checks.overlap)
    splits["train"] = [each for each in splits["train"] if each.number not in leaked]
    return splits, sorted([*rejections, *leaked.values()], key=lambda each: each.number)


def _arithmetic(config: ProblemsConfig) -> list[Problem]:
    total = sum(config.counts.values())
    drawn = generate_problems(total, config.seed, holdout=True, family=config.arithmetic)
    return [
        Problem(
            number,
            each.question,
            reference_solution(each),
            str(each.answer),
            f"{origin(config)}, row {number}",
        )
        for number, each in enumerate(drawn, 1)
    ]


def _dealt(problems: Iterable[Problem], config: ProblemsConfig) -> dict[str, list[Problem]]:
    """Problems of a generator, split by split in the order in which they are drawn."""
    drawn = iter(problems)
    return {split: list(islice(drawn, count)) for split, count in config.counts.items()}


def _split(problem: Problem, config: ProblemsConfig) -> str:
    """The split of a question, whatever else is in the source."""
    key = content_key("split", config.seed, normalised(problem.question))
    place = int(key[:13], 16) / 16**13
    if place < config.test_share:
        return "test"
    return "validation" if place < config.test_share + config.validation_share else "train"


def _leaked(splits: dict[str, list[Problem]], bound: float) -> dict[int, Rejection]:
    """Train problems that a problem of another split repeats in large part, by row number."""
    train, scored = splits["train"], splits["test"] + splits["validation"]
    pairs = overlapping([e.question for e in train], [e.question for e in scored], bound)
    return {
        train[index].number: Rejection(
            train[index].number,
            "overlap",
            f"shares {bound:.0%} or more of its words with row {scored[other].number}, which is "
            "kept for scoring",
            train[index].question,
        )
        for index, other in pairs.items()
    }


def _wanted(split: str, splits: dict[str, list[Problem]], config: ProblemsConfig) -> list[Problem]:
    wanted: int = getattr(config, split)
    if len(splits[split]) < wanted:
        held = ", ".join(f"{len(splits[name])} {name}" for name in splits)
        raise DataError(
            "too few problems",
            got=f"{sum(map(len, splits.values()))} usable ones, of which {held}",
            expected=f"{wanted} {split}",
            where=origin(config),
            fix=f"make problems.{split} smaller, or change problems.test_share or "
            "problems.validation_share; the table rejected_problems tells what was left out",
        )
    return splits[split][: config.counts[split]]


def _frame(table: str, rows: list[dict[str, object]]) -> pl.DataFrame:
    dtypes = TABLES[table].dtypes
    return pl.DataFrame(rows, {name: dtypes[name] for name in dtypes if name != "experiment_id"})
