"""Several processes train one experiment, and leave the rows of a single one."""

import signal
import threading
from pathlib import Path

import psutil
import pytest

from flows.compare_contexts import train_in_turn
from sdcore.config import load_experiment
from sdcore.errors import ConfigError
from sdcore.store.database import Store
from tasks.run.condition_run import ConditionRun, base_run, trained_runs
from tasks.run.critiques import critic_budget
from tasks.run.lock import run_lock
from tasks.run.session import DATABASE, Session
from tasks.run.workers import workers_beside
from tests.helpers.paths import QUICKSTART
from tests.helpers.runs import assert_same, sdcore, start, wait_for
from tests.helpers.small import SMALL


@pytest.mark.usefixtures("prefect")
def test_two_workers_leave_the_rows_of_one(finished, tmp_path):
    result = sdcore("run", QUICKSTART, *SMALL, "--workers", 2, "--workspace", tmp_path)
    assert "worker 2" not in result.stderr  # it did not fail
    assert_same(tmp_path, finished[0])


@pytest.mark.night
@pytest.mark.usefixtures("prefect")
def test_what_a_killed_worker_leaves_is_taken_by_another_one(tmp_path):
    longer = ["run", QUICKSTART, *SMALL, "seeds=[3,4]"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sdcore(*longer, "--workspace", whole)
    process = start(*longer, "--workers", 2, "--workspace", killed)
    wait_for(process, lambda: taken_by_second(killed))
    worker(process.pid).kill()
    said = process.communicate()[1]
    assert "worker 2 failed" in " ".join(said.split())
    assert_same(killed, whole)


@pytest.mark.night
@pytest.mark.usefixtures("prefect")
def test_ctrl_c_stops_the_workers_too(tmp_path):
    longer = ["run", QUICKSTART, *SMALL, "seeds=[3,4]"]
    process = start(*longer, "--workers", 2, "--workspace", tmp_path)
    wait_for(process, lambda: taken_by_second(tmp_path))
    second = worker(process.pid)
    process.send_signal(signal.SIGINT)  # to the command alone
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert not second.is_running()
    assert "stopped on request" in (tmp_path / "worker-2.log").read_text()


def worker(parent: int) -> psutil.Process:
    children = psutil.Process(parent).children()
    return next(child for child in children if "flows.worker" in child.cmdline())


def taken_by_second(workspace: Path) -> bool:
    """Return whether two conditions and seeds have rounds, of which the second process has one."""
    if not (workspace / DATABASE).exists():
        return False
    runs = Store(workspace / DATABASE).query(
        "SELECT DISTINCT condition, seed FROM updates WHERE (condition, seed) NOT IN "
        "(SELECT (condition, seed) FROM scores WHERE round = 3 AND split = 'test')"
    )
    return len(runs) > 1


@pytest.fixture
def base(tmp_path):
    """The base of an experiment of two seeds, and its session."""
    with Session(tmp_path) as session:
        settings = load_experiment(QUICKSTART, ["seeds=[0,1]", "training.rounds=1"])
        yield base_run(session, settings)


def test_what_another_process_holds_comes_last(base):
    runs, worked = trained_runs(base), []
    assert [run.label for run in runs[:4]] == [
        "grpo/seed-0", "reference/seed-0", "step_aligned/seed-0", "grpo/seed-1",
    ]  # fmt: skip
    held = run_lock(runs[0])
    held.__enter__()

    def work(run: ConditionRun) -> None:
        worked.append(run.label)
        if len(worked) == 2:
            held.__exit__(None, None, None)

    train_in_turn(runs[:4], work, "conditions")
    assert worked == ["reference/seed-0", "step_aligned/seed-0", "grpo/seed-0", "grpo/seed-1"]


def test_when_all_are_held_it_waits_for_one_and_says_for_whom(base, capsys):
    runs, worked = trained_runs(base)[:1], []
    with run_lock(runs[0]):
        thread = threading.Thread(target=train_in_turn, args=(runs, worked.append, "conditions"))
        thread.start()
        thread.join(1.5)
        assert thread.is_alive() and not worked
    thread.join(60)
    assert worked == runs
    assert "works on grpo/seed-0" in capsys.readouterr().err


def test_a_critic_with_a_budget_is_for_one_process_at_a_time(tmp_path):
    endpoint = ["critic.kind=llm", "critic.model=m", "critic.base_url=http://127.0.0.1:1/v1"]
    limits = {"paid": ["critic.max_budget=1", "critic.price_out=1"], "free": []}
    for name, limit in limits.items():
        with Session(tmp_path / name) as session:
            settings = load_experiment(QUICKSTART, [*endpoint, *limit])
            first, second = trained_runs(base_run(session, settings))[:2]
            entered = threading.Event()

            def enter(run: ConditionRun = second, entered: threading.Event = entered) -> None:
                with critic_budget(run):
                    entered.set()

            with critic_budget(first):
                thread = threading.Thread(target=enter)
                thread.start()
                assert entered.wait(0.2 if name == "paid" else 60) == (name == "free")
            thread.join(60)
            assert entered.is_set()


def test_torchrun_has_its_own_processes(base, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigError, match="train one condition together"), workers_beside(base, 1):
        pass
