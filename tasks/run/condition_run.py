"""One condition and seed of an experiment in a workspace: the unit that is trained."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import polars as pl

from sdcore.config import Condition, Experiment
from sdcore.errors import ConfigError, StoreError, did_you_mean
from sdcore.rollouts import Record
from sdcore.schedule import PROBES, Stage, lineages
from sdcore.store.database import Store
from sdcore.store.schema import content_key

if TYPE_CHECKING:
    from sdcore.models.policies import Tokenizer
    from tasks.run.session import Session

BASE = "base"
_PROBES = """
    SELECT rollout_id, prompt_ids, response_ids, logprobs FROM rollouts
    WHERE experiment_id = $experiment_id AND condition = $condition AND seed = $seed
        AND purpose = 'validation' AND round = 0
    ORDER BY sample_index, problem_id LIMIT $count
"""
RAW = -1  # round of the named model where a warm-up makes the base, which is round 0, from it


@dataclass(frozen=True, slots=True)
class StoredPolicy(Record):
    """A set of weights: a row of the table `policies`."""

    table: ClassVar[str] = "policies"

    experiment_id: str
    condition: str
    seed: int
    policy_id: str
    parent_id: str | None
    step: int
    round: int
    kind: str
    path: str | None
    sha256: str
    hinted: float | None = None

    @property
    def checkpoint(self) -> Path:
        """Folder of its checkpoint, below the workspace."""
        return checkpoint_path(self.experiment_id, self.condition, self.seed, self.round)


def checkpoint_path(experiment_id: str, condition: str, seed: int, round_: int) -> Path:
    """Return the folder of the checkpoint after so many rounds of a run, below the workspace."""
    return Path("checkpoints", experiment_id, condition, f"seed-{seed}", f"round-{round_:04d}")


class ConditionRun:
    """One condition and seed of an experiment, in a session.

    The untrained policy is the run with condition 'base' and the experiment's first seed. Not a
    dataclass, since Prefect would walk through all settings at each task that is given one.
    """

    def __init__(
        self, session: "Session", experiment: Experiment, condition: str, seed: int
    ) -> None:
        self.session, self.experiment = session, experiment
        self.condition, self.seed = condition, seed

    @property
    def label(self) -> str:
        """Short name for task runs and progress lines."""
        return self.condition if self.condition == BASE else f"{self.condition}/seed-{self.seed}"

    @property
    def columns(self) -> dict[str, object]:
        """The columns that name the run in every table."""
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
        return self.session.store

    @property
    def base(self) -> "ConditionRun":
        """The untrained policy that this run starts from."""
        return base_run(self.session, self.experiment)

    @property
    def root(self) -> Path:
        """The workspace's folder."""
        return self.session.root

    @property
    def folder(self) -> Path:
        """Folder of its checkpoints."""
        return self.checkpoint(0).parent

    @cached_property
    def prompt_day(self) -> date:
        """The date in every prompt: the day on which the experiment was first started."""
        stored = self.store.rows("experiments", experiment_id=self.experiment.experiment_id)
        day: date = stored["created_at"][0].date() if len(stored) else datetime.now(UTC).date()
        return day

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The model's tokenizer; `prepare` has stored the experiment before."""
        return self.session.models.tokenizer(self.experiment.model.name, self.prompt_day)

    @cached_property
    def context_length(self) -> int | None:
        """Positions of the model, prompt and response together; None where it has no limit."""
        return self.session.models.context_length(self.experiment.model.name)

    @property
    def sampled_length(self) -> int | None:
        """Positions of the sampling engine, which may be fewer than the model's."""
        engine = self.experiment.engine
        served = engine.context_length if engine.kind == "vllm" else None
        lengths = [each for each in (self.context_length, served) if each is not None]
        return min(lengths, default=None)

    @cached_property
    def train_problems(self) -> pl.DataFrame:
        """The problems to train on, in order; `prepare` has stored them before."""
        return self.problems("train")

    @cached_property
    def probes(self) -> pl.DataFrame:
        """Validation rollouts of the base, on which every round measures the drift from it."""
        return self.store.query(_PROBES, self.base.columns | {"count": PROBES})

    def key(self, *parts: object) -> str:
        """A content key below this run."""
        return content_key(*self.columns.values(), *parts)

    def checkpoint(self, round_: int) -> Path:
        """Folder of the checkpoint after `round_` rounds."""
        own = checkpoint_path(self.experiment.experiment_id, self.condition, self.seed, round_)
        return self.root / own

    def checkpoints(self) -> dict[int, Path]:
        """Folders of the checkpoints that are there, by rounds; other folders are not ours."""
        return {
            int(folder.name.removeprefix("round-")): folder
            for folder in sorted(self.folder.glob("round-*"))
            if re.fullmatch(r"round-[0-9]{4,}", folder.name)
        }

    def problems(self, split: str) -> pl.DataFrame:
        """The problems of a split, in order; with a band, those that were found to be in it."""
        wanted = self.experiment.problems
        if wanted.band is None:
            return self.candidates(split)
        measured = self.store.rows(
            "difficulties", experiment_id=self.experiment.experiment_id, in_band=True
        )
        in_band = pl.col("problem_id").is_in(measured["problem_id"].to_list())
        return self.candidates(split).filter(in_band).head(getattr(wanted, split))

    def candidates(self, split: str) -> pl.DataFrame:
        """The problems of a split before a band chooses among them, in order."""
        run = self.experiment.experiment_id
        return self.store.rows("problems", experiment_id=run, split=split).sort("position")

    def policy(self, round_: int) -> StoredPolicy:
        """The stored policy after `round_` rounds; after none it is the base.

        Raises:
            StoreError: the rounds before have not been trained in this workspace.
        """
        owner = self.base if round_ == 0 else self
        rows = owner.store.rows("policies", round=round_, **owner.columns)
        if len(rows) != 1:
            raise StoreError(
                "the policy is not stored",
                got=f"{len(rows)} rows",
                expected="1",
                where=f"{owner.columns} after {round_} rounds",
                fix="run the experiment again: it trains what is missing",
            )
        return StoredPolicy.from_frame(rows)[0]


def base_run(session: "Session", experiment: Experiment) -> ConditionRun:
    """The run of the untrained policy."""
    return ConditionRun(session, experiment, BASE, experiment.seeds[0])


def trained_runs(base: ConditionRun) -> list[ConditionRun]:
    """The runs of all conditions and seeds, in the order in which they train."""
    session, experiment = base.session, base.experiment
    return [
        ConditionRun(session, experiment, condition, seed)
        for condition, seed in lineages(experiment)
    ]


def condition_runs(
    session: "Session", experiment: Experiment, condition: str, seed: int | None
) -> list[ConditionRun]:
    """The runs of a condition, of one seed or of all.

    Raises:
        ConfigError: the experiment has no such condition or seed.
    """
    require_condition(experiment, condition, seed)
    seeds = _seeds(experiment, condition, seed)
    return [ConditionRun(session, experiment, condition, number) for number in seeds]


def _seeds(experiment: Experiment, condition: str, seed: int | None) -> tuple[int, ...]:
    if condition == BASE:
        return experiment.seeds[:1]
    return experiment.seeds if seed is None else (seed,)


def require_stage(
    store: Store,
    experiment: Experiment,
    condition: str,
    seed: int | None,
    stage: Stage,
    round_: int,
) -> None:
    """Refuse a stage or a round that a condition, with one seed or with all, has not been through.

    Raises:
        ConfigError: the experiment has no such condition or seed.
        StoreError: it has not been through it.
    """
    require_condition(experiment, condition, seed)
    evaluates = stage is Stage.evaluate
    if condition == BASE and not evaluates:
        raise StoreError("the untrained policy has one stage only", got=stage, expected="evaluate")
    for number in _seeds(experiment, condition, seed):
        columns = {"condition": condition, "seed": number}
        policies = store.rows("policies", experiment_id=experiment.experiment_id, **columns)
        stored = set(policies["round"])
        expected = stored if evaluates else {count - 1 for count in stored if count}
        if round_ not in expected:
            raise StoreError(
                "no such round to redo",
                got=round_,
                expected=f"{min(expected)} to {max(expected)}" if expected else "a trained run",
                where=condition if condition == BASE else f"{condition}, seed {number}",
            )


def require_condition(experiment: Experiment, condition: str, seed: int | None) -> None:
    """See that an experiment has a condition, and a seed if one is given.

    Raises:
        ConfigError: it has not.
    """
    conditions = (BASE, *experiment.conditions)
    if condition not in conditions or seed not in (None, *experiment.seeds):
        raise ConfigError(
            "no such condition or seed",
            got=condition if seed is None else f"{condition}, seed {seed}",
            expected=f"{', '.join(conditions)}; seeds {', '.join(map(str, experiment.seeds))}",
            fix=did_you_mean(condition, conditions) if condition not in conditions else "",
        )
