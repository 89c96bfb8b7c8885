import signal
import subprocess
import sys
import threading

import pytest

from sdcore.config import load_experiment
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tasks.run.interrupts import Stopped, draining
from tasks.run.lineage import Lineage
from tasks.run.lock import turn
from tests.helpers.paths import QUICKSTART
from tests.unit.store.test_database import problem

HOLD = """if True:
    import sys
    from pathlib import Path
    from sdcore.config import load_experiment
    from tasks.run.lock import turn
    from tasks.run.lineage import Lineage
    with turn(Lineage(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]), "grpo", 0)):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that is at work on a lineage until its input ends."""
    command = [sys.executable, "-c", HOLD, str(QUICKSTART), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def lineage(root, condition="grpo") -> Lineage:
    return Lineage(load_experiment(QUICKSTART), root, condition, 0)


@pytest.mark.parametrize("end", ["stdin", "kill"])
def test_a_lineage_is_for_one_process_at_a_time(tmp_path, holder, capsys, end):
    with turn(lineage(tmp_path, "reference")):
        pass  # another one is free
    finish = holder.stdin.close if end == "stdin" else holder.kill
    timer = threading.Timer(1, finish)
    timer.start()
    with turn(lineage(tmp_path)):
        assert holder.wait(10) is not None
    assert "grpo/seed-0 is at work in another process" in capsys.readouterr().err


def test_ctrl_c_ends_the_waiting(tmp_path, holder):
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    with draining(), pytest.raises(Stopped), turn(lineage(tmp_path)):
        pass
    assert holder.poll() is None


def test_what_a_turn_has_stored_is_on_disk_at_its_end(tmp_path):
    mine = lineage(tmp_path)
    with pytest.raises(RuntimeError), turn(mine):
        mine.store.append_soon(problems=TABLES["problems"].frame([problem(0)]))
        raise RuntimeError
    assert len(Store(mine.store.path).rows("problems")) == 1
