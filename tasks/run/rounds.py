"""A round of a condition's training: what its stages make, committed in one transaction."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import polars as pl

from sdcore.contexts import Critique
from sdcore.rollouts import JudgedRollout, Rollout, judged
from tasks.run.arrivals import Arrivals
from tasks.run.condition_run import ConditionRun, StoredPolicy
from tasks.run.critiques import stored_critiques


class Round:
    """Output of one round of a condition's training; each stage fills in its part.

    sample → rollouts; align → critiques and contexts; distill → the policy after it, updates and
    token signals. Not a dataclass, since Prefect walks through every field of one.

    Attributes:
        run: the condition and seed.
        number: from 0; so many rounds are behind the policy that is trained.
        sampler: the weights that sample: the policy, or with `training.lag` the one a round before.
        policy: the weights that are trained.
        following: the round after it, if that is sampled before this one is committed.
        arrived: rollouts, as they are sampled.
        resumed: it is the first of this process, and may find some of its rows stored.
        rollouts: of the sampler, once all are there; the samples of a problem are neighbours.
        critiques: of the rollouts, by rollout id; some may have none.
        frames: rows to be stored at the round's end, by table.
    """

    def __init__(self, run: ConditionRun, policy: StoredPolicy, *, resumed: bool) -> None:
        self.run, self.policy, self.resumed = run, policy, resumed
        self.number, self.sampler = policy.round, policy
        self.following: Round | None = None
        self.arrived = Arrivals(run.settings.group_size)
        self.rollouts: list[Rollout] = []
        self.critiques: dict[str, Critique] = {}
        self.frames: dict[str, pl.DataFrame] = {}

    @property
    def label(self) -> str:
        """Short name for task runs and progress lines."""
        return f"{self.run.label} round {self.number}"

    def judged(self, rollouts: Sequence[Rollout] | None = None) -> list[JudgedRollout]:
        """Rollouts, by default all, with their problems and critiques."""
        chosen = self.rollouts if rollouts is None else rollouts
        return judged(chosen, self.run.train_problems, self.critiques)

    def commit(self, policy: StoredPolicy, frames: Mapping[str, pl.DataFrame]) -> None:
        """Store all that the round has made, in one transaction; `policy` is the one after it."""
        policies = StoredPolicy.to_frame([policy])
        self.run.store.append_missing(policies=policies, **self.frames, **frames)
        self.frames = {}
        self.policy = policy

    def ahead(self) -> "Round":
        """The round after this one, to be sampled from the policy that this one trains."""
        self.following = Round(self.run, self.policy, resumed=self.resumed)
        self.following.number += 1
        return self.following

    def next(self) -> "Round":
        """The round after this one, which is committed."""
        following = self.following or Round(self.run, self.policy, resumed=False)
        following.policy = self.policy
        return following

    @contextmanager
    def kept(self) -> Iterator[None]:
        """If the block fails or is stopped, store what finished stages have made.

        That includes those of the following round. A later start finds it and goes on from there. A
        kill loses it.
        """
        try:
            yield
        except BaseException:
            for round_ in filter(None, (self, self.following)):
                if round_.frames:
                    self.run.store.append_missing(**round_.frames)
            raise


def first_round(run: ConditionRun) -> Round:
    """The round after the last stored policy of a run, whose checkpoint is whole.

    What may be on disk of a later one, or of one half-written, is removed.
    """
    last = run.store.rows("policies", **run.columns)["round"].max() or 0
    assert isinstance(last, int), "rounds are numbers"
    for number, folder in run.checkpoints().items():
        if number > last:
            shutil.rmtree(folder)
    for remains in run.folder.glob(".round-*"):  # of a write that was killed
        shutil.rmtree(remains)
    return _resumed(run, last)


def stored_round(run: ConditionRun, number: int) -> Round:
    """A committed round as its stages left it, from what is stored."""
    round_ = _resumed(run, number)
    same = {"policy_id": round_.sampler.policy_id, "purpose": "train", "round": number}
    same |= run.columns
    rollouts = Rollout.from_frame(run.store.rows("rollouts", **same))
    round_.rollouts = in_order(rollouts)
    ids = [each.rollout_id for each in rollouts]
    round_.critiques = stored_critiques(run, ids)
    round_.frames["rollouts"] = Rollout.to_frame(round_.rollouts)
    round_.frames["contexts"] = run.store.rows("contexts", rollout_id=ids, **run.columns)
    return round_


def _resumed(run: ConditionRun, number: int) -> Round:
    round_ = Round(run, run.policy(number), resumed=True)
    if number and run.experiment.training.lag:
        round_.sampler = run.policy(number - 1)
    return round_


def in_order(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """The rollouts of a round in the order in which they train."""
    return sorted(rollouts, key=lambda each: (each.problem_id, each.sample_index))
