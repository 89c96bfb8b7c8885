"""The problems: where they come from, and which of them are used."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import regex
from pydantic import Field, ValidationInfo, field_validator, model_validator

from sdcore.config.base import FILE_ONLY, NAMES_CODE, Count, Options, Seed, Settings, Share
from sdcore.registry import Entry, Registry, about

LOCATIONS = ("path", "query", "name")
"""The settings of problems that a source may need."""

OPTIONAL: Mapping[str, Any] = MappingProxyType(
    {"subset": None, "part": "train", "options": {}, "answer_pattern": None}
)
"""The settings of problems that a source may read, each with the value that asks for nothing.

These are not the defaults as they are now: stored experiments stay valid if one changes."""


class ArithmeticConfig(Settings):
    """Difficulty of the problems of source = arithmetic."""

    operands: int = Field(4, ge=3, le=4)
    smallest: int = Field(10, ge=1, description="smallest operand")
    largest: int = Field(
        99, le=999, description="largest operand, and largest magnitude of any result"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.largest - self.smallest < 9:
            raise ValueError("problems.arithmetic: fewer than 10 numbers from smallest to largest")
        return self


class WordProblemsConfig(Settings):
    """Difficulty of the problems of source = word_problems."""

    fewest_steps: int = Field(2, ge=2, le=6, description="least number of steps of a solution")
    most_steps: int = Field(6, ge=2, le=6, description="largest number of steps of a solution")
    distractors: int = Field(
        1, ge=0, le=3, description="sentences per question whose number is not needed"
    )
    largest: int = Field(
        50, ge=20, le=999, description="largest number in a question; results may be larger"
    )
    decimals: bool = Field(False, description="amounts of money may have cents")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fewest_steps > self.most_steps:
            raise ValueError("problems.word_problems: fewest_steps exceeds most_steps")
        return self


class ChecksConfig(Settings):
    """Which rows of a source are rejected, and how many may be."""

    bad_share: Share = Field(
        0.05, description="largest share of rows without a usable question or answer"
    )
    near_duplicate: float = Field(
        0.8,
        gt=0,
        description="similarity from which questions with equal numbers and answer are duplicates; "
        "2: never",
    )
    overlap: float = Field(
        0.7,
        gt=0,
        description="a train question is rejected if it shares this part of its runs of eight "
        "words with a scored question; 2: never",
    )
    text_answers: bool = Field(
        False, description="keep answers that are not mathematics, and compare them as text"
    )


class BandConfig(Settings):
    """Keep only problems that are hard for the untrained policy, but learnable."""

    samples: int = Field(16, ge=1, description="samples per problem")
    accuracy_below: float = Field(5 / 16, gt=0, le=1, description="avg@samples is below this")
    format_rate: Share = Field(0.8, description="smallest share of well-formed traces")
    candidates: float = Field(
        4.0, ge=1, description="candidates that are measured per problem wanted, at most"
    )


class ProblemsConfig(Settings):
    """Source of the questions, and the size of each split."""

    source: str = Field(
        description="arithmetic, word_problems, jsonl, csv, parquet, duckdb, dataset, "
        "reasoning_gym, or module:attribute",
        json_schema_extra=NAMES_CODE,
    )
    path: Path | None = Field(None, description="the file of jsonl, csv, parquet or duckdb")
    query: str | None = Field(None, description="SQL, for source = duckdb")
    name: str | None = Field(
        None, description="dataset: hub id or local folder; reasoning_gym: the generator"
    )
    subset: str | None = Field(None, description="configuration of the dataset")
    part: str = Field("train", description="the dataset's own split that is read")
    options: Options = Field(
        {},
        validate_default=True,
        description="options of the reasoning_gym generator, or of a source of your own",
        json_schema_extra=FILE_ONLY,
    )
    limit: Count | None = Field(None, description="rows that are read, at most")
    question: str = Field("question", description="column of the question")
    solution: str = Field("solution", description="column of the reference solution")
    answer: str = Field("answer", description="column of the final answer")
    template: str = Field(
        "template", description="column of the template's name, if the source has one"
    )
    answer_pattern: str | None = Field(
        None,
        description="regular expression whose one group matches the final answer in the answer "
        "text, within a second per row",
    )
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    word_problems: WordProblemsConfig = WordProblemsConfig()
    train: Count = 256
    validation: Count = 64
    test: Count = 200
    test_share: Share = Field(0.2, description="share of the source's questions, by hash")
    validation_share: Share = Field(0.1, description="share of the source's questions, by hash")
    split_by: Literal["question", "template"] = Field(
        "question",
        description="template: all questions of a template are in one split, so that no test "
        "question is a training question with other numbers",
    )
    order: Literal["file", "hash"] = Field(
        "file",
        description="order of choice within a split. file: the first usable rows, which stay "
        "chosen when rows are appended; hash: a sample of all rows, for a file that is sorted by "
        "topic",
    )
    seed: Seed = Field(0, description="seed of the generator, or of the hash that splits")
    checks: ChecksConfig = ChecksConfig()
    band: BandConfig | None = Field(None, description="absent: every usable problem may be chosen")

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        return SOURCES.get(source, where="problems.source").name

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        settings = SOURCES[info.data["source"]].settings if "source" in info.data else None
        return settings.model_validate(options).model_dump() if settings else options

    @field_validator("answer_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else regex.compile(pattern).groups
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise ValueError(
                f"not a regular expression: {error or type(error).__name__}"
            ) from error
        if groups != 1:
            raise ValueError("needs exactly one group, e.g. '#### (.+)$'")
        return pattern

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs = SOURCES[self.source].needs
        for setting in LOCATIONS:
            given = getattr(self, setting) is not None
            if given != (setting in needs):
                raise ValueError(
                    f"problems.{setting} is {'not for' if given else 'needed for'} "
                    f"source = {self.source}"
                )
        for setting, unasked in OPTIONAL.items():
            if setting not in SOURCES[self.source].reads and getattr(self, setting) != unasked:
                raise ValueError(f"problems.{setting} is not for source = {self.source}")
        if self.test_share + self.validation_share >= 1:
            raise ValueError("problems.test_share and validation_share leave nothing to train on")
        return self

    @property
    def counts(self) -> dict[str, int]:
        """Problems to take into each split; more than are wanted where a band chooses among them.

        In this order, so that a larger train split moves no generated test problem.
        """
        surplus = self.band.candidates if self.band else 1.0
        wanted = {"test": self.test, "validation": self.validation, "train": self.train}
        return {split: math.ceil(surplus * count) for split, count in wanted.items()}


@dataclass(frozen=True)
class SourceEntry(Entry):
    """A registered source of problems.

    Attributes:
        implementation: function from `ProblemsConfig` to the rows with their numbers, or its
            import path. A row is a mapping, or text that says why it cannot be read.
        needs: settings of `LOCATIONS` that it needs; the others must be absent.
        reads: settings of `OPTIONAL` that it reads; the others must be absent.
        settings: model of `problems.options`; None leaves them to the source.
        endless: a generator, whose problems are dealt to the splits in the order of drawing.
        screened: its rows are checked for usable answers and for duplicates.
        traces: import path of a function from `ProblemsConfig` to well-formed traces for a
            warm-up, each a `sdcore.training.warmup.Solved`; None: they are the reference solutions.
        exercises: import path of a function from `ProblemsConfig`, a count and a seed to solutions
            with a known first error, on which critics are measured; None: they are made of the
            worked solutions, which must have GSM8K's calculator notes.
    """

    implementation: Callable[["ProblemsConfig"], Iterable[tuple[int, Any]]] | str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = tuple(OPTIONAL)
    settings: type[Settings] | None = None
    endless: bool = False
    screened: bool = True
    traces: str | None = None
    exercises: str | None = None


def _reader(name: str) -> str:
    return f"sdcore.problems.sources:{name}_rows"


_ROWS = ("answer_pattern",)  # what every source of written rows reads

SOURCES = Registry(
    "source",
    SourceEntry,
    (
        SourceEntry(
            "arithmetic", _reader("arithmetic"), reads=(), endless=True, screened=False,
            traces="sdcore.training.warmup:arithmetic_traces",
            exercises="sdcore.critics.corruption:arithmetic_exercises",
            about="Generated sums of three or four numbers, with worked solutions.",
        ),
        SourceEntry(
            "word_problems", _reader("word_problem"), reads=(), endless=True, screened=False,
            traces="sdcore.training.warmup:word_problem_traces",
            exercises="sdcore.critics.corruption:word_exercises",
            about="Generated word problems of two to six steps, with worked solutions.",
        ),
        SourceEntry("jsonl", _reader("jsonl"), ("path",), _ROWS, about="A JSON object per line."),
        SourceEntry("csv", _reader("csv"), ("path",), _ROWS, about="A CSV file with a header."),
        SourceEntry("parquet", _reader("parquet"), ("path",), _ROWS, about="A Parquet file."),
        SourceEntry(
            "duckdb", _reader("duckdb"), ("path", "query"), _ROWS,
            about="A query on a DuckDB file.",
        ),
        SourceEntry(
            "dataset", _reader("dataset"), ("name",), ("subset", "part", *_ROWS),
            about="A data set of the Hugging Face hub, or a local folder of one.",
        ),
        SourceEntry(
            "reasoning_gym", _reader("reasoning_gym"), ("name",), ("options", *_ROWS), endless=True,
            about="A procedural generator of reasoning-gym.",
        ),
    ),
)  # fmt: skip
"""The sources that `problems.source` can name."""

Rows = Callable[[ProblemsConfig], Iterable[Mapping[str, Any]]]


def source(
    *, needs: tuple[str, ...] = (), settings: type[Settings] | None = None, endless: bool = False
) -> Callable[[Rows], SourceEntry]:
    """Make a function from `ProblemsConfig` to rows a source of problems.

    A row is a mapping with the columns that `problems.question`, `solution` and `answer` name. An
    experiment file refers to it as `source = "my_module:my_source"`. Its options are validated by
    `settings` and arrive in `problems.options`, complete.
    """

    def register(rows: Rows) -> SourceEntry:
        def numbered(config: ProblemsConfig) -> Iterable[tuple[int, Any]]:
            return enumerate(map(_record, rows(config)), 1)

        return SourceEntry(
            rows.__name__, numbered, needs, settings=settings, endless=endless, about=about(rows)
        )

    return register


def _record(row: object) -> object:
    """A row as screening reads it; text says why it is none."""
    return row if isinstance(row, Mapping) else f"not a mapping: {row!r}"
