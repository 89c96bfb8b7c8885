"""Choose the problems of each split.

The split of a question follows from its hash, or that of its template, and within a split the first
usable rows are chosen. So both stay the same when rows are appended to the source.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import polars as pl

from sdcore.config import SOURCES, ProblemsConfig
from sdcore.errors import DataError
from sdcore.problems.duplicates import normalised, overlapping
from sdcore.problems.screening import Problem, Rejection, screen
from sdcore.problems.sources import Record, origin, read_records
from sdcore.store.schema import TABLES, content_key

TooLong: TypeAlias = Callable[[Problem, str], str | None]
"""Returns why a problem of a split does not fit into the model; None if it does."""


@dataclass(frozen=True)
class Loaded:
    """Rows of the tables of the same names, without experiment_id."""

    problems: pl.DataFrame
    rejected_problems: pl.DataFrame


def fits(problem: Problem, split: str) -> None:
    """Accept every problem, however long."""


def load_problems(config: ProblemsConfig, too_long: TooLong = fits) -> Loaded:
    """Load the problems of all splits, and the rejected rows.

    The same source and settings give the same problems, and no question is in two splits. A
    problem that is chosen stays chosen when rows are appended to the source (unless one of them
    contradicts its answer, or `config.order` is `hash`).

    Args:
        config: the source, the counts of the splits and the checks.
        too_long: says why a problem does not fit into the model. The next one takes its place.

    Raises:
        ConfigError: a generator or a library is missing.
        DataError: the source cannot be read, too many rows are bad, or there are too few problems.
    """
    splits, rejections = sort_out(config, too_long)
    _require_enough(splits, rejections, config)
    rows = [
        problem.columns | {"split": split, "position": position}
        for split, count in config.counts.items()
        for position, problem in enumerate(splits[split][:count])
    ]
    rejected = [rejection.columns | {"source": origin(config)} for rejection in rejections]
    return Loaded(_frame("problems", rows), _frame("rejected_problems", rejected))


def sort_out(
    config: ProblemsConfig, too_long: TooLong = fits
) -> tuple[dict[str, list[Problem]], list[Rejection]]:
    """Sort every row of a source into a split, in order of choice, or reject it.

    Train problems that overlap with a chosen problem of another split are rejected. Those that are
    not chosen do not count: nothing is scored on them, and more of them come as the source grows.
    Nor are they asked whether they are `too_long`.

    Raises:
        ConfigError: a generator or a library is missing.
        DataError: the source cannot be read, or too many of its rows are bad.
    """
    source, records = SOURCES[config.source], read_records(config)
    problems, rejections = screen(records, config) if source.screened else _trusted(records, config)
    if source.endless:
        dealt = _dealt(problems, config)
        if config.split_by == "template":
            _require_templates_apart(dealt, config)
        splits, long = _without_long(dealt, list(dealt), config, too_long)
        return splits, sorted([*rejections, *long], key=lambda row: row.number)
    if config.order == "hash":
        problems = sorted(problems, key=lambda p: content_key(config.seed, p.problem_id))
    splits = {split: list[Problem]() for split in config.counts}
    for problem in problems:
        splits[_split(problem, config)].append(problem)
    splits, long = _without_long(splits, ["validation", "test"], config, too_long)
    overlaps = _overlaps(splits, config)
    splits["train"] = [problem for problem in splits["train"] if problem.number not in overlaps]
    splits, more = _without_long(splits, ["train"], config, too_long)
    rejections += [*long, *more, *overlaps.values()]
    return splits, sorted(rejections, key=lambda row: row.number)


def _trusted(
    records: Iterable[tuple[int, Record]], config: ProblemsConfig
) -> tuple[list[Problem], list[Rejection]]:
    """Take every row of a source that makes only usable problems, each once."""
    place = origin(config)
    problems = [
        Problem(
            number,
            row["question"],
            row["solution"],
            row["answer"],
            f"{place}, row {number}",
            row.get("template"),
        )
        for number, row in records
        if isinstance(row, Mapping)
    ]
    return problems, []


def _dealt(problems: Iterable[Problem], config: ProblemsConfig) -> dict[str, list[Problem]]:
    """Deal the problems of a generator to the splits, in the order in which they are drawn."""
    drawn = iter(problems)
    return {split: list(islice(drawn, count)) for split, count in config.counts.items()}


def _require_templates_apart(dealt: Mapping[str, list[Problem]], config: ProblemsConfig) -> None:
    """Refuse a generator that deals one template to two splits, or names none.

    Raises:
        DataError: it does.
    """
    home: dict[str | None, str] = {}
    for split, problems in dealt.items():
        for problem in problems:
            if problem.template is None or home.setdefault(problem.template, split) != split:
                raise DataError(
                    "the generator does not keep templates apart",
                    got=f"template {problem.template} in {split}",
                    expected="each problem names its template, and a template is in one split",
                    where=f"{origin(config)}, row {problem.number}",
                    fix='set problems.split_by = "question"',
                )


def _split(problem: Problem, config: ProblemsConfig) -> str:
    """Return the split of a question or template, which depends on nothing else in the source."""
    unit = problem.question if config.split_by == "question" else problem.template or ""
    key = content_key("split", config.seed, normalised(unit))
    place = int(key[:13], 16) / 16**13
    if place < config.test_share:
        return "test"
    return "validation" if place < config.test_share + config.validation_share else "train"


def _without_long(
    splits: dict[str, list[Problem]],
    names: Sequence[str],
    config: ProblemsConfig,
    too_long: TooLong,
) -> tuple[dict[str, list[Problem]], list[Rejection]]:
    """Reject problems of the named splits that are too long, until enough are chosen."""
    kept, rejections = dict(splits), list[Rejection]()
    for split in names:
        chosen, waiting = list[Problem](), iter(splits[split])
        while len(chosen) < config.counts[split] and (problem := next(waiting, None)):
            if reason := too_long(problem, split):
                rejections.append(Rejection(problem.number, "too long", reason, problem.question))
            else:
                chosen.append(problem)
        kept[split] = [*chosen, *waiting]
    return kept, rejections


def _overlaps(splits: dict[str, list[Problem]], config: ProblemsConfig) -> dict[int, Rejection]:
    """Reject train problems that share most of their words with a scored one, by row number."""
    bound, train = config.checks.overlap, splits["train"]
    scored = [p for split in ("test", "validation") for p in splits[split][: config.counts[split]]]
    pairs = overlapping([p.question for p in train], [p.question for p in scored], bound)
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


def _require_enough(
    splits: dict[str, list[Problem]], rejections: list[Rejection], config: ProblemsConfig
) -> None:
    for split, problems in splits.items():
        wanted: int = getattr(config, split)
        if len(problems) < wanted:
            usable = ", ".join(f"{len(splits[name])} {name}" for name in splits)
            kinds = Counter(rejection.kind for rejection in rejections).items()
            left_out = ", ".join(f"{count} {kind}" for kind, count in kinds) or "none"
            raise DataError(
                "too few problems",
                got=f"{sum(map(len, splits.values()))} usable rows, of which {usable}; "
                f"left out: {left_out}",
                expected=f"{wanted} {split}",
                where=origin(config),
                fix=f"make problems.{split} smaller, or change problems.test_share or "
                "problems.validation_share",
            )


def _frame(table: str, rows: list[dict[str, object]]) -> pl.DataFrame:
    dtypes = TABLES[table].dtypes
    return pl.DataFrame(rows, {name: dtypes[name] for name in dtypes if name != "experiment_id"})
