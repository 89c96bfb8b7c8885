"""The public Python API, name by name."""

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

import sdcore
from sdcore.errors import ConfigError, StoreError

SMALL = [
    "seeds=[3]", "problems.train=8", "problems.validation=4", "problems.test=6",
    "training.rounds=1", "training.questions_per_round=4", "evaluation.samples=3",
    "evaluation.validation_samples=2", "evaluation.resamples=200", "conditions.grpo.group_size=4",
]  # fmt: skip
# A script without a __main__ guard that runs an experiment inside an event loop.
SCRIPT = """
import asyncio, sys
import sdcore

async def main():
    experiment = sdcore.load_experiment("quickstart", {small!r})
    return sdcore.run(experiment, {workspace!r})

run = asyncio.run(main())
print(run.experiment_id)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prefect):
    """A workspace with a run that a script has made, and the script's output."""
    folder = tmp_path_factory.mktemp("api")
    script = folder / "script.py"
    workspace = str(folder / "runs")
    script.write_text(textwrap.dedent(SCRIPT.format(small=SMALL, workspace=workspace)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return workspace, done.stdout


def test_every_public_name_is_there_and_no_other_is():
    assert all(getattr(sdcore, name) is not None for name in sdcore.__all__)
    assert set(sdcore.__all__) <= set(dir(sdcore))
    with pytest.raises(AttributeError, match="no_such"):
        sdcore.no_such  # noqa: B018


def test_a_script_without_a_guard_runs_an_experiment_inside_an_event_loop(finished):
    workspace, printed = finished
    (run,) = sdcore.open(workspace).runs()
    assert printed == f"{run.experiment_id}\n"
    assert run.experiment.training.rounds == 1


def test_the_tables_of_a_run_are_frames(finished):
    run = sdcore.open(finished[0]).run("quickstart")
    assert len(run.rollouts().filter(purpose="train", condition="grpo")) == 16
    assert set(run.updates()["condition"]) == {"grpo", "reference", "step_aligned"}
    assert set(run.scores()["split"]) == {"validation", "test"}
    assert set(run.critiques()["critic"]) == {"oracle"}
    assert len(run.token_signals()) and len(run.comparison())
    counted = sdcore.open(finished[0]).query("SELECT count(*) AS n FROM rollouts")
    assert counted["n"].item() == len(run.rollouts())


def test_the_champion_answers_questions_the_same_each_time(finished):
    champion = sdcore.open(finished[0]).run("quickstart").champion()
    questions = ["Compute 16-30+54+10.", "Work out 34-37+45-92."]
    answers = champion.generate(questions)
    assert len(answers) == 2 and "<step_1>" in answers[0]
    assert champion.generate(questions) == answers


def test_what_is_not_there_is_named(finished, tmp_path):
    with pytest.raises(StoreError, match="no tables here"):
        sdcore.open(tmp_path)
    with pytest.raises(StoreError, match="no such run"):
        sdcore.open(finished[0]).run("other")
    with pytest.raises(ConfigError):
        sdcore.load_experiment("no-such-experiment")


def test_importing_sdcore_loads_nothing_heavy():
    code = (
        "import sys, sdcore; print({'torch', 'prefect', 'mlflow', 'polars'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("whom", ["both", "caller"])
def test_ctrl_c_lets_the_run_end_by_itself(tmp_path, whom):
    """In a terminal both get it; where only the caller does, the second one ends the run."""
    child = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(1)  # longer than `subprocess.run` waits
    print("stored", number, file=sys.stderr, flush=True)
    os._exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("started", file=sys.stderr, flush=True)
time.sleep(60)
"""
    caller = """
import os, sys
from flows.api import _finished
try:
    _finished([sys.executable, "-c", sys.argv[1]], os.environ)
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", caller, child], stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr.readline() == "started\n"
        if whom == "both":
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            os.kill(process.pid, signal.SIGINT)
        number = signal.SIGINT if whom == "both" else signal.SIGTERM
        assert process.stderr.read() == f"stored {number:d}\ninterrupted\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_run_ends_with_the_process_that_called_it():
    child = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    caller = """
import os, sys
from flows.api import _finished
_finished([sys.executable, "-c", sys.argv[1]], os.environ)
"""
    with subprocess.Popen(
        [sys.executable, "-c", caller, child], stderr=subprocess.PIPE, text=True
    ) as process:
        run = psutil.Process(int(process.stderr.readline()))
        process.kill()
        run.wait(30)
