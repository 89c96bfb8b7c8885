"""Whoever is killed, and however: nobody of the group is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from sdcore.system import supervise

FAMILY = textwrap.dedent("""
    import os, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(os.getpid(), child.pid, flush=True)
    child.wait()
""")
PARENT = textwrap.dedent(f"""
    import os, subprocess, sys
    guard = [sys.executable, "-I", {supervise.__file__!r}, str(os.getpid())]
    child = subprocess.Popen([*guard, sys.executable, "-c", {FAMILY!r}])
    child.wait()
""")


@pytest.fixture
def family():
    """A parent, its guard, and the guarded command with a child of its own."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    leader, child = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
    watch = psutil.Process(parent.pid).children()[0]
    yield {"parent": psutil.Process(parent.pid), "guard": watch, "leader": leader, "child": child}
    parent.kill()
    parent.wait()
    parent.stdout.close()


@pytest.mark.parametrize("victim", ["parent", "guard", "leader"])
def test_nobody_outlives_a_kill(family, victim):
    family[victim].send_signal(signal.SIGKILL)
    others = [family[name] for name in ("guard", "leader") if name != victim]
    # Linux ends the leader when its guard is killed; its children are then its own to stop.
    others += [family["child"]] if victim != "guard" else []
    _, alive = psutil.wait_procs(others, timeout=60)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    if victim == "guard":
        family["child"].kill()


def test_the_exit_code_is_the_commands():
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    run = [sys.executable, "-I", supervise.__file__, str(os.getpid()), *command]
    assert subprocess.run(run).returncode == 7


def test_a_command_that_ignores_the_request_to_stop_is_killed(monkeypatch):
    monkeypatch.setattr(supervise, "GRACE", 0.5)
    deaf = "import signal, time; signal.signal(15, 1); print(1, flush=True); time.sleep(600)"
    child = subprocess.Popen(
        [sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True
    )
    child.stdout.readline()
    supervise.end(child)
    assert child.wait(10) == -signal.SIGKILL
    child.stdout.close()


@pytest.mark.slow
def test_a_guard_that_is_told_twice_still_ends_the_group():
    deaf = "import signal, time, os; signal.signal(15, 1); print(os.getpid(), flush=True)"
    command = [sys.executable, "-c", f"{deaf}; time.sleep(600)"]
    watch = [sys.executable, "-I", supervise.__file__, str(os.getpid()), *command]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as guard:
        leader = psutil.Process(int(guard.stdout.readline()))
        guard.terminate()
        time.sleep(1)
        guard.terminate()
        assert leader.is_running()  # it has ten seconds
        guard.wait(60)
    assert not psutil.pid_exists(leader.pid) or leader.status() == psutil.STATUS_ZOMBIE
