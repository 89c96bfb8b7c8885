"""Free the disk of checkpoints that nothing needs; what the tables hold stays."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sdcore.training import checkpoints
from tasks.run.condition_run import ConditionRun, StoredPolicy, trained_runs
from tasks.run.lock import run_lock

_CHOSEN = """
    SELECT policy_id FROM chosen_checkpoints
    WHERE experiment_id = $experiment_id AND condition = $condition AND seed = $seed
"""


@dataclass(frozen=True)
class Freed:
    """Files of a checkpoint that nothing needs.

    Attributes:
        folder: of the checkpoint.
        part: `checkpoint`, all of it; `moments`, what only training needs; `remains` of a write
            that was killed.
        size: in bytes.
    """

    folder: Path
    part: str
    size: int


def prune(base: ConditionRun, *, unchosen: bool = False, delete: bool = False) -> list[Freed]:
    """Return what the checkpoints of a run take on disk that nothing needs, and delete it if asked.

    Kept are the weights of scored policies, of the last one of each condition and seed and of the
    champion, and the moments from which training goes on. No row is deleted.

    Args:
        base: the run's untrained policy.
        unchosen: free scored policies too, unless validation chose them. Their `policies.path` is
            emptied; a later use of one retrains it on the stored rollouts.
        delete: without it nothing changes.

    Raises:
        HeldError: another process is at work on a condition and seed.
    """
    with base.session.tracking() as tracking:
        champion = tracking.champion(base.experiment)
    freed = list[Freed]()
    for run in trained_runs(base):
        with run_lock(run):
            found = list(_needless(run, _kept(run, champion, unchosen=unchosen)))
            if delete:
                _delete(run, found)
        freed += found
    return freed


def _kept(run: ConditionRun, champion: str | None, *, unchosen: bool) -> set[int]:
    """Rounds of the policies whose weights stay."""
    stored = _policies(run)
    chosen = set(run.store.query(_CHOSEN, run.columns)["policy_id"]) | {champion}
    return {
        policy.round
        for policy in stored
        if policy is stored[-1]
        or policy.policy_id in chosen
        or (policy.path is not None and not unchosen)
    }


def _needless(run: ConditionRun, kept: set[int]) -> Iterator[Freed]:
    for remains in sorted(run.folder.glob(".round-*")):
        yield Freed(remains, "remains", _size(remains))
    last = max((policy.round for policy in _policies(run)), default=0)
    folders = run.checkpoints()
    whole = [n for n, folder in folders.items() if n <= last and checkpoints.has_state(folder)]
    for number, folder in folders.items():
        if number not in {*kept, *whole[-1:]}:
            yield Freed(folder, "checkpoint", _size(folder))
        elif number not in whole[-1:] and (size := checkpoints.state_bytes(folder)):
            yield Freed(folder, "moments", size)


def _delete(run: ConditionRun, freed: Sequence[Freed]) -> None:
    """Delete files; first the tables say so, since a row must not name a folder that is gone."""
    gone = {_round(each.folder) for each in freed if each.part == "checkpoint"}
    named = [policy for policy in _policies(run) if policy.round in gone and policy.path]
    if named:
        frame = StoredPolicy.to_frame(named).with_columns(path=pl.lit(None, pl.String))
        run.store.replace(policies=frame)
    for each in freed:
        if each.part == "moments":
            checkpoints.drop_state(each.folder)
        else:
            shutil.rmtree(each.folder)


def _policies(run: ConditionRun) -> list[StoredPolicy]:
    return StoredPolicy.from_frame(run.store.rows("policies", **run.columns).sort("round"))


def _round(folder: Path) -> int:
    return int(folder.name.removeprefix("round-"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
