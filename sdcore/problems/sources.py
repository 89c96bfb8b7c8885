"""Read the rows of a source of problems: a file, a data set, a query, or a generator.

A row is a mapping, or text that says why it cannot be read. What its columns mean and whether it
can be used is decided in `screening`.
"""

import csv
import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

import polars as pl

from sdcore.config import SOURCES, ProblemsConfig
from sdcore.errors import ConfigError, DataError
from sdcore.keys import hub_key, redacted
from sdcore.problems import word_problems
from sdcore.problems.arithmetic import generate_problems, reference_solution
from sdcore.registry import loaded
from sdcore.store.database import query_file
from sdcore.system.json_objects import distinct

Record = Mapping[str, Any] | str  # a row, or why it cannot be read
_TEXT = (pl.String, pl.Categorical, pl.Enum, pl.Null)
SURPLUS = 4  # questions drawn from a generator per question wanted, since some repeat


class SpelledFloat(float):
    """A number of a JSON file that keeps its spelling: ``str`` of 0.00001 is not ``1e-05``."""

    _spelling: str

    def __new__(cls, spelling: str) -> Self:
        """Return the number that is spelt so."""
        number = super().__new__(cls, spelling)
        number._spelling = spelling
        return number

    def __str__(self) -> str:
        return self._spelling


def read_records(config: ProblemsConfig) -> Iterator[tuple[int, Record]]:
    """Yield the rows of a source with their numbers, from 1; at most `config.limit` of them.

    Without that limit a generator, which may never end, is asked for `SURPLUS` per problem wanted.

    Bytes that are not UTF-8 become U+FFFD.

    Raises:
        ConfigError: a library that the source needs is not installed, or a generator is unknown.
        DataError: the source cannot be read at all.
        PluginError: a source from outside fails.
    """
    source, most = SOURCES[config.source], config.limit
    if most is None and source.endless:
        most = SURPLUS * sum(config.counts.values())
    try:
        with SOURCES.running(config.source, origin(config)):
            yield from islice(loaded(source.implementation)(config), most)
    except (OSError, ValueError, csv.Error, pl.exceptions.PolarsError) as error:
        if isinstance(error, ConfigError | DataError):
            raise
        raise DataError("problems cannot be read", got=error, where=origin(config)) from error


def origin(config: ProblemsConfig) -> str:
    """Return a short name of the source, for error messages and the column `source`."""
    if config.path is not None:
        return config.path.name
    if config.source == "dataset":
        return " ".join(part for part in (config.name, config.subset, config.part) if part)
    return f"{config.name or config.source}, seed {config.seed}"


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield place ("file, row n") and object of each line of a JSONL file that is not blank.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    _require_file(path)
    try:
        for number, record in _lines(path):
            if isinstance(record, str):
                raise DataError("bad row", got=record, where=f"{path.name}, row {number}")
            yield f"{path.name}, row {number}", record
    except OSError as error:
        raise DataError("the file cannot be read", got=error, where=str(path)) from error


def arithmetic_rows(config: ProblemsConfig) -> Iterable[tuple[int, Record]]:
    """Yield generated problems, as many as all splits take together."""
    total = sum(config.counts.values())
    drawn = generate_problems(total, config.seed, holdout=True, family=config.arithmetic)
    rows = (
        {
            "question": problem.question,
            "solution": reference_solution(problem),
            "answer": str(problem.answer),
        }
        for problem in drawn
    )
    return enumerate(rows, 1)


def word_problem_rows(config: ProblemsConfig) -> Iterable[tuple[int, Record]]:
    """Yield generated word problems, as many as all splits take; their story is their template."""
    family = config.word_problems
    if config.split_by == "template":
        apart = word_problems.split_stories(config.seed, config.test_share, config.validation_share)
        drawn = word_problems.problems_of(config.counts, config.seed, family, apart)
    else:
        total = sum(config.counts.values())
        drawn = islice(word_problems.draw_problems(config.seed, holdout=True, family=family), total)
    rows = (
        {
            "question": problem.question,
            "solution": word_problems.reference_solution(problem),
            "answer": word_problems.as_text(problem.answer),
            "template": problem.story,
        }
        for problem in drawn
    )
    return enumerate(rows, 1)


def jsonl_rows(config: ProblemsConfig) -> Iterator[tuple[int, Record]]:
    """Yield the lines of a JSONL file."""
    return _lines(_path(config))


def _lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield every line of a JSONL file that is not blank; numbers count lines."""
    with path.open("rb") as lines:  # text mode would cut at more than line feeds
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parsed(line.decode("utf-8-sig", errors="replace").strip())


def _parsed(line: str) -> Record:
    try:
        record = json.loads(line, parse_float=SpelledFloat, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error}): {line}"
    return record if isinstance(record, dict) else f"not an object: {line}"


def csv_rows(config: ProblemsConfig) -> Iterator[tuple[int, Record]]:
    """Yield rows whose cells are text, so that no answer is rounded; numbers count rows."""
    with _path(config).open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if repeated := sorted(name for name, times in Counter(header).items() if times > 1):
            raise DataError(
                "the CSV file has two columns of one name",
                got=", ".join(map(repr, repeated)),
                where=origin(config),
                fix="give each column a name of its own in the first line",
            )
        rows = iter(lambda: _cells(reader, header), None)
        yield from enumerate((row for row in rows if row), 1)


def _cells(reader: Any, header: list[str]) -> Record | None:
    """Read the next row, empty for a blank line; None at the end of the file."""
    start = reader.line_num + 1
    try:
        cells = next(reader)
    except StopIteration:
        return None
    except csv.Error as error:
        return f"not CSV ({error}): lines {start} to {reader.line_num}"
    if cells and len(cells) != len(header):
        return f"{len(cells)} cells, but the header has {len(header)}: {cells}"
    return dict(zip(header, cells, strict=False))


def parquet_rows(config: ProblemsConfig) -> Iterable[tuple[int, Record]]:
    """Yield the rows of a Parquet file; brackets in its name are no pattern."""
    return _frame_rows(pl.scan_parquet(_path(config), n_rows=config.limit, glob=False), config)


def duckdb_rows(config: ProblemsConfig) -> Iterable[tuple[int, Record]]:
    """Yield the rows of a query."""
    frame = query_file(_path(config), config.query or "", limit=config.limit)
    return _frame_rows(frame.lazy(), config)


def _frame_rows(frame: pl.LazyFrame, config: ProblemsConfig) -> Iterable[tuple[int, Record]]:
    """Yield the rows of the columns that make problems; nothing is read of the others.

    Raises:
        DataError: the question or answer has no column, or one of neither text nor numbers. The
            values of some types, such as the date of infinity, do not exist in Python.
    """
    schema = frame.collect_schema()
    wanted = {config.question, config.solution, config.answer, config.template}
    columns = {name: dtype for name, dtype in schema.items() if name in wanted}
    odd = [f"{n} {t}" for n, t in columns.items() if not (t.is_numeric() or t in _TEXT)]
    missing = {config.question, config.answer} - columns.keys()
    if missing or odd:
        raise DataError(
            "problems need columns of text or numbers",
            got=", ".join(odd) or f"the columns {', '.join(schema.names()) or '(none)'}",
            expected=" and ".join(sorted(missing)),
            where=origin(config),
            fix="problems.question, problems.solution and problems.answer name the columns",
        )
    return enumerate(frame.select(*columns).collect().iter_rows(named=True), 1)


def dataset_rows(config: ProblemsConfig) -> Iterator[tuple[int, Record]]:
    """Yield the rows of a data set."""
    datasets = _extra("datasets")
    try:
        yield from enumerate(_opened(datasets, config), 1)
    except (KeyError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            "problems cannot be read",
            got=redacted(f"{type(error).__name__}: {error}", hub_key()),
            where=origin(config),
        ) from None  # the hub's answer is in its error


def _opened(datasets: Any, config: ProblemsConfig) -> Iterable[Record]:
    """Open a data set of the hub, or a local folder of data files or of `save_to_disk`."""
    name = config.name or ""
    if (Path(name) / "state.json").exists():
        return datasets.load_from_disk(name)  # type: ignore[no-any-return]
    if (Path(name) / "dataset_dict.json").exists():
        return datasets.load_from_disk(name)[config.part]  # type: ignore[no-any-return]
    return datasets.load_dataset(  # type: ignore[no-any-return]
        name, config.subset, split=config.part, streaming=config.limit is not None
    )


def reasoning_gym_rows(config: ProblemsConfig) -> Iterable[tuple[int, Record]]:
    """Draw questions of a procedural generator; each follows from the seed and its number."""
    wanted = sum(config.counts.values())
    try:
        drawn = _extra("reasoning_gym").create_dataset(
            config.name, seed=config.seed, size=SURPLUS * wanted, **config.options
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            "reasoning-gym has no such generator, or not with these options",
            got=f"{config.name}: {error}",
            where="problems.name, problems.options",
        ) from error
    return enumerate(drawn, 1)


def _path(config: ProblemsConfig) -> Path:
    assert config.path is not None, "ProblemsConfig asks for it"
    _require_file(config.path)
    return config.path


def _require_file(path: Path) -> None:
    """Refuse what never ends, or can be read once only: a run reads its problems again."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(
            "problems are read from a file",
            got="a pipe or a device",
            where=str(path),
            fix="write its content into a file",
        )


def _extra(library: str) -> Any:
    """Import a library that only some sources need."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(
            "a library that this source needs is not installed",
            got=error,
            fix="pip install 'sdcore[data]'",
        ) from error
