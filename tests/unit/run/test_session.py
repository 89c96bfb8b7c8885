"""The end of a session and of a run in MLflow, where the end itself goes wrong."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

import polars as pl
import pytest

from tasks.run.session import Session
from tasks.track import tracked


def fail(*_):
    raise OSError("it cannot be closed")


def umask():
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_model_that_cannot_be_closed_leaves_nothing_else_open(tmp_path, monkeypatch, capfd):
    before, closed = umask(), []
    for error in (KeyboardInterrupt, OSError):
        session = Session(tmp_path)
        monkeypatch.setattr(session.models, "close", fail)
        monkeypatch.setattr(session.store, "close", lambda: closed.append(1))
        with pytest.raises(error), session:
            if error is KeyboardInterrupt:
                raise KeyboardInterrupt
    assert closed == [1, 1] and umask() == before
    assert capfd.readouterr().err.count("it cannot be closed") == 1  # beside Ctrl-C


def test_a_run_ends_with_its_own_error_where_mlflow_fails_too(capfd):
    ended = []

    class Tracking:
        start = log_problems = staticmethod(lambda *_: None)

        def finish(self, experiment, status):
            ended.append(status)
            fail()

    @contextmanager
    def tracking():
        yield Tracking()

    rows = pl.DataFrame({"libraries": ["{}"], "code_version": ["0.1"]})
    base = SimpleNamespace(
        experiment=SimpleNamespace(experiment_id="x"),
        store=SimpleNamespace(rows=lambda *_, **__: rows),
        session=SimpleNamespace(tracking=tracking),
    )
    with pytest.raises(KeyboardInterrupt), tracked(base):
        raise KeyboardInterrupt
    assert ended == ["KILLED"] and "it cannot be closed" in capfd.readouterr().err
