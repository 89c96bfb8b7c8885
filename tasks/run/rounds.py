"""A round of a condition's training: what its stages make, committed in one transaction."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import polars as pl

from sdcore.contexts import Critique
from sdcore.rollouts import JudgedRollout, Rollout, judged
from tasks.maintenance.rerun import last_checkpoint, supersede_after
from tasks.run.condition_run import ConditionRun, StoredPolicy
from tasks.run.progress import note

_LATER = """
    SELECT count(*) FROM policies
    WHERE experiment_id = $experiment_id AND condition = $condition AND seed = $seed
        AND round > $round
"""


class Round:
    """Output of one round of a condition's training; each stage fills in its part.

    sample → rollouts; align → critiques and contexts; distill → the policy after it, updates and
    token signals. Not a dataclass, since Prefect walks through every field of one.

    Attributes:
        run: the condition and seed.
        number: from 0; so many rounds are behind the policy that samples.
        policy: the weights that sample and are trained.
        resumed: it is the first of this process, and may find some of its rows stored.
        rollouts: sampled from it; the samples of a problem are neighbours.
        critiques: of the rollouts, by rollout id; some may have none.
        frames: rows to be stored at the round's end, by table.
    """

    def __init__(self, run: ConditionRun, policy: StoredPolicy, *, resumed: bool) -> None:
        self.run, self.policy, self.resumed = run, policy, resumed
        self.number = policy.round
        self.rollouts: list[Rollout] = []
        self.critiques: dict[str, Critique] = {}
        self.frames: dict[str, pl.DataFrame] = {}

    @property
    def label(self) -> str:
        """Short name for task runs and progress lines."""
        return f"{self.run.label} round {self.number}"

    def judged(self) -> list[JudgedRollout]:
        """The rollouts with their problems and critiques."""
        return judged(self.rollouts, self.run.train_problems, self.critiques)

    def commit(self, policy: StoredPolicy, frames: Mapping[str, pl.DataFrame]) -> None:
        """Store all that the round has made, in one transaction; `policy` is the one after it."""
        policies = StoredPolicy.to_frame([policy])
        self.run.store.append_missing(policies=policies, **self.frames, **frames)
        self.frames = {}
        self.policy = policy

    def next(self) -> "Round":
        """The round after this one, which is committed."""
        return Round(self.run, self.policy, resumed=False)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """If the block fails or is stopped, store what its finished stages have made.

        A later start finds it and goes on from there. A kill loses it.
        """
        try:
            yield
        except BaseException:
            if self.frames:
                self.run.store.append_missing(**self.frames)
            raise


def first_round(run: ConditionRun) -> Round:
    """The round after the last checkpoint of a run; what is stored of later rounds is superseded.

    Rollouts and critiques of that very round are kept: the checkpoint's policy made them.
    """
    last = last_checkpoint(run)
    later = run.store.query(_LATER, run.columns | {"round": last.round}).item()
    if later:
        note(
            f"{run.label}: the last checkpoint is after {last.round} rounds; what was stored of "
            "later ones moved to `superseded` and is made again"
        )
        supersede_after(run, last.round)
    for folder in run.folder.glob("round-*"):
        if int(folder.name.removeprefix("round-")) > last.round:
            shutil.rmtree(folder)
    return Round(run, last, resumed=True)
