import subprocess
import sys

import pytest

from sdcore.config import load_experiment
from sdcore.errors import StoreError
from tasks.run.condition_run import ConditionRun
from tasks.run.lock import run_lock
from tasks.run.session import Session
from tests.helpers.paths import QUICKSTART

HOLD = """if True:
    import sys
    from pathlib import Path
    from sdcore.config import load_experiment
    from tasks.run.condition_run import ConditionRun
    from tasks.run.lock import run_lock
    from tasks.run.session import Session
    settings = load_experiment(Path(sys.argv[1]))
    with run_lock(ConditionRun(Session(Path(sys.argv[2])), settings, "grpo", 0)):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that is at work on a run until its input ends."""
    command = [sys.executable, "-c", HOLD, str(QUICKSTART), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def condition_run(root, condition="grpo") -> ConditionRun:
    return ConditionRun(Session(root), load_experiment(QUICKSTART), condition, 0)


@pytest.mark.parametrize("end", ["stdin", "kill"])
def test_a_run_is_for_one_process_at_a_time(tmp_path, holder, end):
    with run_lock(condition_run(tmp_path, "reference")):
        pass  # another one is free
    with (
        pytest.raises(StoreError, match="grpo/seed-0 is at work in another process"),
        run_lock(condition_run(tmp_path)),
    ):
        pass
    finish = holder.stdin.close if end == "stdin" else holder.kill
    finish()
    holder.wait(60)
    with run_lock(condition_run(tmp_path)):
        pass
