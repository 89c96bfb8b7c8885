"""Where a run lives on disk, and which run a task works for."""

import atexit
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import polars as pl

from sdcore.config import Condition, Experiment
from sdcore.errors import ConfigError, StoreError
from sdcore.store.database import Store
from sdcore.store.schema import content_key

BASE = "base"
RAW = -1  # round of the named model where a warm-up makes the base, which is round 0, from it


@dataclass(frozen=True)
class Reference:
    """What a task returns: where its rows are. The frames themselves stay in DuckDB."""

    table: str
    key: str
    rows: int


@dataclass
class Stored:
    """What a process knows of a lineage's rows without asking the tables each time."""

    rollouts: set[str]  # ids
    tokens: dict[int, int]  # of the responses that a round trains on
    policies: dict[int, str]  # id after so many rounds
    scores: set[str]  # ids


class Lineage:
    """One condition and seed of an experiment in a workspace folder: the unit that is trained.

    The untrained policy is the lineage with condition 'base' and the experiment's first seed. Not
    a dataclass, since Prefect would walk through all settings at each task that is given one.
    """

    def __init__(self, experiment: Experiment, root: Path, condition: str, seed: int) -> None:
        self.experiment, self.root = experiment, root
        self.condition, self.seed = condition, seed

    @property
    def label(self) -> str:
        """Short name for task runs and progress lines."""
        return self.condition if self.condition == BASE else f"{self.condition}/seed-{self.seed}"

    @property
    def columns(self) -> dict[str, object]:
        """The columns that name the lineage in every table."""
        return {
            "experiment_id": self.experiment.experiment_id,
            "condition": self.condition,
            "seed": self.seed,
        }

    @property
    def settings(self) -> Condition:
        """The condition's settings."""
        return self.experiment.conditions[self.condition]

    @property
    def store(self) -> Store:
        """The workspace's tables."""
        return open_store(self.root)

    @property
    def base(self) -> "Lineage":
        """The untrained policy that this lineage starts from."""
        return base_lineage(self.experiment, self.root)

    @property
    def folder(self) -> Path:
        """Folder of its checkpoints."""
        run = self.root / "checkpoints" / self.experiment.experiment_id
        return run / self.condition / f"seed-{self.seed}"

    @cached_property
    def stored(self) -> Stored:
        """What the tables held of it when first asked, and what was added here since."""
        rollouts = self.store.query(
            "SELECT rollout_id, purpose, round, len(response_ids) AS tokens FROM rollouts "
            "WHERE experiment_id = $experiment_id AND condition = $condition AND seed = $seed",
            self.columns,
        )
        trained = rollouts.filter(purpose="train").group_by("round").agg(pl.col("tokens").sum())
        policies = self.store.rows("policies", **self.columns)
        return Stored(
            rollouts=set(rollouts["rollout_id"]),
            tokens=dict(trained.iter_rows()),
            policies=dict(policies.select("round", "policy_id").iter_rows()),
            scores=set(self.store.rows("scores", **self.columns)["score_id"]),
        )

    def forget(self) -> None:
        """Ask the tables anew for what is stored: rows were set aside."""
        self.__dict__.pop("stored", None)

    def key(self, *parts: object) -> str:
        """A content key below this lineage."""
        return content_key(*self.columns.values(), *parts)

    def checkpoint(self, round_: int) -> Path:
        """Folder of the checkpoint after `round_` rounds."""
        return self.folder / f"round-{round_:04d}"


def base_lineage(experiment: Experiment, root: Path) -> Lineage:
    """The lineage of the untrained policy."""
    return Lineage(experiment, root, BASE, experiment.seeds[0])


def lineages(experiment: Experiment, root: Path, condition: str, seed: int | None) -> list[Lineage]:
    """The lineages of a condition, of one seed or of all.

    Raises:
        ConfigError: the experiment has no such condition or seed.
    """
    if condition == BASE:
        return [base_lineage(experiment, root)]
    seeds = experiment.seeds if seed is None else (seed,)
    if condition not in experiment.conditions or not set(seeds) <= set(experiment.seeds):
        raise ConfigError(
            "no such condition or seed",
            got=f"{condition}, seed {seed}",
            expected=f"{', '.join((BASE, *experiment.conditions))}; seeds {experiment.seeds}",
        )
    return [Lineage(experiment, root, condition, each) for each in seeds]


@cache
def open_store(root: Path) -> Store:
    """The one store of a workspace folder in this process."""
    return Store(root / "sdcore.duckdb", threads=1)


def split_problems(lineage: Lineage, split: str) -> pl.DataFrame:
    """The problems of a split, in order; with a band, those that were found to be in it."""
    problems = lineage.experiment.problems
    if problems.band is None:
        return candidates(lineage, split)
    measured = lineage.store.rows(
        "difficulties", experiment_id=lineage.experiment.experiment_id, in_band=True
    )
    chosen = pl.col("problem_id").is_in(measured["problem_id"].to_list())
    return candidates(lineage, split).filter(chosen).head(getattr(problems, split))


def candidates(lineage: Lineage, split: str) -> pl.DataFrame:
    """The problems of a split before a band chooses among them, in order."""
    return _candidates(lineage.root, lineage.experiment.experiment_id, split)


@cache
def _candidates(root: Path, experiment_id: str, split: str) -> pl.DataFrame:
    """Read once a process: `prepare` writes them all before anything else, and only then."""
    rows = open_store(root).rows("problems", experiment_id=experiment_id, split=split)
    return rows.sort("position")


def policy_row(lineage: Lineage, round_: int) -> dict[str, Any]:
    """The stored policy of a lineage after `round_` rounds; after none it is the base.

    Raises:
        StoreError: the rounds before have not been trained in this workspace.
    """
    owner = lineage.base if round_ == 0 else lineage
    key = _round_key(owner, round_)
    if key not in _policies:
        rows = owner.store.rows("policies", round=round_, **owner.columns)
        if len(rows) != 1:
            raise StoreError(
                "the policy is not stored",
                got=f"{len(rows)} rows",
                expected="1",
                where=f"{owner.columns} after {round_} rounds",
                fix="run the experiment again: it trains what is missing",
            )
        _policies[key] = rows.row(0, named=True)
    return _policies[key]


def remember_policy(lineage: Lineage, row: dict[str, Any]) -> None:
    """Spare the next stages from reading a policy that was just stored."""
    _policies[_round_key(lineage, row["round"])] = row
    lineage.stored.policies[row["round"]] = row["policy_id"]


_policies: dict[tuple[object, ...], dict[str, Any]] = {}  # a stored policy never changes


def _round_key(owner: Lineage, round_: int) -> tuple[object, ...]:
    return (owner.root, round_, *owner.columns.values())


def round_rollouts(lineage: Lineage, round_: int) -> pl.DataFrame:
    """The rollouts of a training round; the samples of a question are neighbours."""
    return _round_rows(
        "rollouts", lineage, round_,
        lambda: in_groups(
            lineage.store.rows("rollouts", purpose="train", round=round_, **lineage.columns)
        ),
    )  # fmt: skip


def round_contexts(lineage: Lineage, round_: int) -> pl.DataFrame:
    """The contexts of a training round's rollouts, in no order; some rollouts may have none."""
    return _of_rollouts("contexts", lineage, round_)


def round_critiques(lineage: Lineage, round_: int) -> pl.DataFrame:
    """The critiques of a training round's rollouts, in no order; some rollouts may have none."""
    return _of_rollouts("critiques", lineage, round_)


def in_groups(rollouts: pl.DataFrame) -> pl.DataFrame:
    """Rollouts in the order in which the samples of a question are neighbours."""
    return rollouts.sort("problem_id", "sample_index")


def remember(table: str, lineage: Lineage, round_: int, rows: pl.DataFrame) -> None:
    """Spare the next stages from reading rows of this round that are stored just so."""
    _round[table] = (_round_key(lineage, round_), rows)


def _of_rollouts(table: str, lineage: Lineage, round_: int) -> pl.DataFrame:
    return _round_rows(
        table, lineage, round_,
        lambda: lineage.store.query(
            f"SELECT * FROM {table} WHERE rollout_id IN (SELECT unnest(?))",  # noqa: S608
            [round_rollouts(lineage, round_)["rollout_id"].to_list()],
        ),
    )  # fmt: skip


def _round_rows(
    table: str, lineage: Lineage, round_: int, read: Callable[[], pl.DataFrame]
) -> pl.DataFrame:
    key, rows = _round.get(table, (None, None))
    if rows is None or key != _round_key(lineage, round_):
        rows = read()
        remember(table, lineage, round_, rows)
    return rows


_round: dict[str, tuple[object, pl.DataFrame]] = {}  # of the last round


atexit.register(open_store.cache_clear)  # DuckDB complains of what lives on at exit
