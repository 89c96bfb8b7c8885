"""Where questions come from, and which of them are used."""

import math
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sdcore.config.base import Count, Settings, Share

NEEDED = {  # settings of problems, and the sources that cannot do without
    "path": ("jsonl", "csv", "parquet", "duckdb"),
    "query": ("duckdb",),
    "name": ("dataset", "reasoning_gym"),
}


class ArithmeticConfig(Settings):
    """How hard the problems of source = arithmetic are."""

    operands: int = Field(4, ge=3, le=4)
    smallest: int = Field(10, ge=1, description="operand")
    largest: int = Field(99, le=999, description="operand, and magnitude of any result")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.largest - self.smallest < 9:
            raise ValueError("problems.arithmetic: fewer than 10 numbers from smallest to largest")
        return self


class ChecksConfig(Settings):
    """Which rows of a source are left out, and when there are too many of them."""

    bad_share: Share = Field(0.05, description="of rows without a usable question or answer")
    near_duplicate: float = Field(
        0.8, gt=0, description="similarity of questions with equal numbers and answer; 2 is never"
    )
    overlap: float = Field(
        0.7, gt=0, description="share of its words with a scored question, in train; 2 is never"
    )
    text_answers: bool = Field(
        False, description="answers that are no mathematics are kept, and compared as text"
    )


class BandConfig(Settings):
    """Learnable but hard: which problems are used, by what the untrained policy makes of them."""

    samples: int = Field(16, ge=1, description="a problem")
    accuracy_below: float = Field(5 / 16, gt=0, le=1, description="bound of avg@samples")
    format_rate: Share = Field(0.8, description="least share of well-formed traces")
    candidates: float = Field(
        4.0, ge=1, description="problems that are looked at, at most, for each one wanted"
    )


class ProblemsConfig(Settings):
    """Where the questions come from, and how many go into each split."""

    source: Literal["arithmetic", "jsonl", "csv", "parquet", "duckdb", "dataset", "reasoning_gym"]
    path: Path | None = Field(None, description="the file of jsonl, csv, parquet or duckdb")
    query: str | None = Field(None, description="SQL, for source = duckdb")
    name: str | None = Field(
        None, description="dataset: hub id or local folder; reasoning_gym: the generator"
    )
    subset: str | None = Field(None, description="configuration of the dataset")
    part: str = Field("train", description="the dataset's own split that is read")
    options: dict[str, Any] = Field({}, description="of the reasoning_gym generator")
    limit: Count | None = Field(None, description="rows that are read, at most")
    question: str = Field("question", description="column of the question")
    solution: str = Field("solution", description="column of the reference solution")
    answer: str = Field("answer", description="column of the final answer")
    answer_pattern: str | None = Field(
        None,
        description="regular expression whose one group is the final answer in the answer text",
    )
    arithmetic: ArithmeticConfig = ArithmeticConfig()
    train: Count = 256
    validation: Count = 64
    test: Count = 200
    test_share: Share = Field(0.2, description="of a source's questions, by hash")
    validation_share: Share = Field(0.1, description="of a source's questions, by hash")
    order: Literal["file", "hash"] = Field(
        "file",
        description="of choice within a split: file takes the first usable rows, which stay chosen "
        "when rows are appended; hash samples from all rows, for a file that is sorted by topic",
    )
    seed: int = Field(0, description="of the generator, or of the hash that splits")
    checks: ChecksConfig = ChecksConfig()
    band: BandConfig | None = Field(None, description="absent: every usable problem may be chosen")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for setting, sources in NEEDED.items():
            if (self.source in sources) != (getattr(self, setting) is not None):
                raise ValueError(
                    f"problems.{setting} is needed for source = {' or '.join(sources)}, "
                    "and only there"
                )
        if self.test_share + self.validation_share >= 1:
            raise ValueError("problems.test_share and validation_share leave nothing to train on")
        if self.answer_pattern is not None and re.compile(self.answer_pattern).groups != 1:
            raise ValueError(
                "problems.answer_pattern must have exactly one group, e.g. '#### (.+)$'"
            )
        return self

    @property
    def counts(self) -> dict[str, int]:
        """Problems to take into each split; more than are wanted where a band chooses among them.

        In this order, so that a larger train split moves no generated test problem.
        """
        surplus = self.band.candidates if self.band else 1.0
        wanted = {"test": self.test, "validation": self.validation, "train": self.train}
        return {split: math.ceil(surplus * count) for split, count in wanted.items()}
