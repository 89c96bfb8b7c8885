"""Grades that are made again, where MLflow fails or another process is at work."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from filelock import FileLock

from sdcore.store.database import Store
from tasks.maintenance import rescore as rescoring
from tasks.maintenance.rescore import rescore
from tasks.run.condition_run import base_run, trained_runs
from tasks.run.interrupts import Interrupts
from tests.helpers.example import EXPERIMENT, fill


class Tracking:
    """The runs that MLflow would have; it can be made to fail when one is logged."""

    def __init__(self):
        self.runs, self.held, self.fails = set(), set(), False
        self.locks = []

    def forget(self, experiment, condition, seed):
        self.runs.discard((condition, seed))
        for lock in self.locks:
            with pytest.raises(TimeoutError):
                FileLock(lock).acquire(timeout=0)
            self.held.add(lock)

    def log_checkpoint(self, experiment, condition, seed, updates, scores):
        if self.fails:
            raise OSError("MLflow is gone")
        self.runs.add((condition, seed))

    def finish(self, experiment):
        pass


@pytest.fixture
def session(tmp_path, monkeypatch):
    tracking = Tracking()

    @contextmanager
    def tracked():
        yield tracking

    monkeypatch.setattr(rescoring, "log_comparison", lambda base: None)
    with fill(Store(tmp_path / "sdcore.duckdb")) as store:
        yield SimpleNamespace(
            root=tmp_path, store=store, outbox=None, interrupts=Interrupts(),
            tracking=tracked, mlflow=tracking,
        )  # fmt: skip


def test_what_mlflow_did_not_get_is_logged_by_the_next_call(session):
    base = base_run(session, EXPERIMENT)
    runs = trained_runs(base)
    session.mlflow.runs = {(each.condition, each.seed) for each in (base, *runs)}
    session.mlflow.locks = [f"{each.folder}.lock" for each in (base, *runs)]
    before, session.mlflow.fails = session.mlflow.runs.copy(), True
    rollouts = session.store.rows("rollouts")
    session.store.replace(rollouts=rollouts.with_columns(correct=~rollouts["correct"]))
    with pytest.raises(OSError, match="MLflow is gone"):
        rescore(base)
    assert session.mlflow.runs < before and len(session.mlflow.held) == len(runs) + 1
    session.mlflow.fails = False
    assert rescore(base)["changed"] == 0
    assert session.mlflow.runs == before
