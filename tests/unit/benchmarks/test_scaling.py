"""The simulation of a study on shared devices."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "tests/benchmarks"
STEPS = [("server", 2.0), (None, 3.0), ("trainer", 1.0)]


@pytest.fixture
def seconds(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    finished = runpy.run_path(str(FOLDER / "scaling.py"))["finished"]

    def of_two_jobs(workers, servers=1, trainers=1):
        devices = {"server": servers, "trainer": trainers}
        return finished((iter(STEPS) for _ in range(2)), workers, devices)

    return of_two_jobs


def test_a_worker_alone_takes_its_steps_one_after_another(seconds):
    assert seconds(workers=1) == 12.0


def test_another_worker_has_the_server_while_one_waits_for_its_critic(seconds):
    # One: server until 2, critic 5, trainer 6. The other: server until 4, critic 7, trainer 8.
    assert seconds(workers=2) == 8.0
    assert seconds(workers=2, servers=2) == 7.0  # both ask for the trainer at 5
    assert seconds(workers=2, servers=2, trainers=2) == 6.0
