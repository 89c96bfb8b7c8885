"""A server samples the answers that are scored while the policy is trained further."""

import os
import signal

import pytest

from tasks.run.interrupts import DRAIN
from tests.helpers.runs import assert_same, count, kill, sdcore, start, tables, wait_for

pytestmark = pytest.mark.usefixtures("prefect")
NIGHT = pytest.mark.night
FILE = """
name = "scoring"
model = { name = "builtin:tiny-solver" }
problems = { source = "arithmetic", train = 8, validation = 2, test = 3 }
sampling = { max_new_tokens = 48, batch_size = 64 }
training = { rounds = 3, questions_per_round = 4 }
evaluation = { every = 1, samples = 1, validation_samples = 1, resamples = 200 }
engine = { kind = "beside:Beside" }
[prompts]
student = "{{ question }}"
teacher = "Hint: {{ context }}\\n{{ question }}"
[conditions.aligned]
objective = "beside:Told"
context = "step_aligned"
learning_rate = 0.002
"""
BESIDE = '''
"""An engine and a teacher that leave marks, and hold up what they are told to.

Files beside this one: `server` makes the engine read policies from disk, `held` keeps it from
scoring, and `train-fails` and `scores-fail` are faults.
"""
import time
from pathlib import Path
from threading import Lock

from sdcore.config import DistillConfig, engine, objective
from sdcore.engines.transformers import open_engine
from sdcore.errors import ModelError, TrainingError
from sdcore.training.objectives import Distillation

HERE = Path(__file__).parent
SERVER, HELD, TRAINS, SCORES, LOG = (
    HERE / name for name in ("server", "held", "train-fails", "scores-fail", "log")
)
ROUND, TEST, WAIT = 4, 3, 60  # rollouts of a round and of the test split; seconds


def note(what):
    with LOG.open("a") as log:
        print(what, file=log)


def until(happened):
    patience = time.monotonic() + WAIT
    while not happened():
        if time.monotonic() > patience:
            raise ModelError("it waited in vain")
        time.sleep(0.01)


@engine()
class Beside:
    update_share = None

    def __init__(self, settings, resources):
        self._inner, self._lock, self._trained = open_engine(settings, resources), Lock(), False
        self.close, self.reads_folders = self._inner.close, SERVER.exists()

    def load(self, policy):
        if policy.folder != policy.base:  # it begins with the base
            self._inner.load(policy)
            self._trained = True

    def generate(self, requests, sampling, on_progress, on_finished):
        if self.reads_folders and self._trained and len(requests) == TEST:
            if SCORES.exists():
                raise ModelError("the engine fails at a score")
            until(lambda: not HELD.exists())
        with self._lock:
            drawn = self._inner.generate(requests, sampling, on_progress, on_finished)
        note("round" if len(requests) == ROUND else "score")
        return drawn


class Settings(DistillConfig):
    objective: str


@objective(Settings)
class Told(Distillation):
    def loss(self, examples, device):
        if TRAINS.exists() and LOG.read_text().count("step") == 1:
            until(lambda: LOG.read_text().count("score") == 4)  # the base, and the first policy
            raise TrainingError("the teacher fails in the second round")
        note("step")
        return super().loss(examples, device)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    (folder / "beside.py").write_text(BESIDE, "utf-8")
    (folder / "scoring.toml").write_text(FILE, "utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(folder, prefect):
    """A run whose engine is in this process: each policy is scored before it is trained further."""
    workspace = folder / "whole"
    sdcore("run", folder / "scoring.toml", "--workspace", workspace)
    return workspace


@pytest.fixture
def marked(folder, whole):
    """Make the engine a server, and leave further marks; all are gone afterwards."""

    def mark(*names):
        (folder / "log").unlink(missing_ok=True)
        for name in ("server", *names):
            (folder / name).touch()

    yield mark
    for name in ("server", "held", "train-fails", "scores-fail", "log"):
        (folder / name).unlink(missing_ok=True)


def started(folder, workspace):
    return start("run", folder / "scoring.toml", "--workspace", workspace)


def scored(workspace):
    rows = tables(workspace)["scores"].filter(condition="aligned").sort("round", "split")
    return rows.select("round", "split").rows()


def test_a_policy_is_trained_while_a_server_scores_it(folder, whole, marked, tmp_path):
    marked("held")
    process = started(folder, tmp_path)
    wait_for(process, lambda: count(tmp_path, "updates") == 2)  # the second round is committed
    assert (1, "test") not in scored(tmp_path)
    (folder / "held").unlink()
    process.communicate()
    assert process.returncode == 0
    assert_same(tmp_path, whole)


@NIGHT
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_between_a_round_and_its_score_loses_neither(
    folder, whole, marked, tmp_path, number
):
    """A scheduler that takes the machine back sends SIGTERM to all of the run's processes."""
    marked("held")
    process = started(folder, tmp_path)
    wait_for(process, lambda: count(tmp_path, "updates") == 2)
    assert (1, "test") not in scored(tmp_path)
    os.killpg(process.pid, number)
    (folder / "held").unlink()
    process.communicate(timeout=DRAIN + 30)
    assert process.returncode
    sdcore("run", folder / "scoring.toml", "--workspace", tmp_path)
    assert_same(tmp_path, whole)


@NIGHT
def test_a_score_that_does_not_end_is_ended_after_a_signal(folder, marked, tmp_path):
    marked("held")
    process = started(folder, tmp_path)
    wait_for(process, lambda: count(tmp_path, "updates") == 2)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=DRAIN + 30)
    assert process.returncode == 130 and "did not end within 30 s: stopped" in said


@NIGHT
def test_it_is_scored_while_the_round_after_is_sampled_and_after_a_kill(folder, marked, tmp_path):
    """The killed run has a policy to score, and an older one to sample the next round from."""
    lagging = [folder / "scoring.toml", "training.lag=1"]
    sdcore("run", *lagging, "--workspace", tmp_path / "whole")
    marked("held")
    process = start("run", *lagging, "--workspace", tmp_path / "killed")
    wait_for(process, lambda: count(tmp_path / "killed", "updates") == 2)
    kill(process)
    (folder / "held").unlink()
    sdcore("run", *lagging, "--workspace", tmp_path / "killed")
    assert_same(tmp_path / "killed", tmp_path / "whole")


@NIGHT
@pytest.mark.parametrize(
    ("fault", "reason", "updates", "scores"),
    [
        ("train-fails", "the teacher fails", 1, [(1, "test"), (1, "validation")]),
        ("scores-fail", "the engine fails at a score", 2, [(1, "validation")]),
    ],
)
def test_a_failure_of_one_leaves_what_the_other_has_done(
    folder, whole, marked, tmp_path, fault, reason, updates, scores
):
    marked(fault)
    failed = sdcore("run", folder / "scoring.toml", "--workspace", tmp_path, check=False)
    assert failed.returncode == 1 and reason in failed.stderr
    assert count(tmp_path, "updates") == updates and scored(tmp_path) == scores
    (folder / fault).unlink()
    sdcore("run", folder / "scoring.toml", "--workspace", tmp_path)
    assert_same(tmp_path, whole)
