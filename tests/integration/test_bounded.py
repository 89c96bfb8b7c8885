import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdcore.errors import SdcoreError
from sdcore.grading import worker
from sdcore.grading.bounded import ALONE_SECONDS, CPU_SECONDS, Workers, run_bounded
from sdcore.grading.worker import MEMORY, Exceeded
from tests.helpers.paths import ROOT

HERE = "tests.integration.test_bounded"


def square(number):
    return number * number


def power(exponent):
    return len(str(9**exponent))  # in C code all the while, which no Python signal interrupts


def fill(size):
    return len(bytearray(size))


def crash(number):
    os.kill(os.getpid(), signal.SIGSEGV)


def refuse(number):
    raise KeyError(number)


def loaded(module):
    return module in sys.modules


def test_results_come_in_the_order_of_the_calls():
    assert run_bounded(f"{HERE}:square", [(n,) for n in range(200)]) == [n * n for n in range(200)]
    assert run_bounded(f"{HERE}:square", []) == []


def test_a_call_is_bounded_in_processor_time_and_its_neighbours_lose_nothing():
    calls = [(10,), (10**8,), (11,)]
    first, slow, last = run_bounded(f"{HERE}:power", calls)
    assert (first, last) == (10, 11)
    assert slow == Exceeded(f"takes more than {ALONE_SECONDS:g} s to be evaluated")
    assert run_bounded(f"{HERE}:square", [(3,)]) == [9]


def test_a_call_is_bounded_in_memory():
    small, large = run_bounded(f"{HERE}:fill", [(MEMORY // 2,), (2 * MEMORY,)])
    assert small == MEMORY // 2
    assert isinstance(large, Exceeded) and "MiB of memory" in large.reason


def test_a_call_that_breaks_its_worker_is_told_from_one_that_fails():
    assert run_bounded(f"{HERE}:crash", [(1,)]) == [
        Exceeded("broke its worker process (exit code -11)")
    ]
    with pytest.raises(KeyError, match="7"):
        run_bounded(f"{HERE}:refuse", [(7,)])


def test_workers_share_nothing_with_this_process_and_are_warm():
    import torch  # noqa: F401

    assert run_bounded(f"{HERE}:loaded", [("torch",), ("math_verify",)]) == [False, True]


def computed(processor_seconds):
    end = time.process_time() + processor_seconds
    while time.process_time() < end:
        pass
    return os.getpid()


def test_a_call_near_the_bound_is_repeated_alone_before_it_is_too_costly():
    calls = [(0.0,), (1.5 * CPU_SECONDS,), (0.0,)]
    pids = run_bounded(f"{HERE}:computed", calls)
    assert all(isinstance(pid, int) for pid in pids)
    assert len(set(pids)) == 3 or pids[1] not in (pids[0], pids[2])


def test_any_thread_may_call_and_closed_workers_are_replaced():
    with Workers() as workers:
        assert workers.run(f"{HERE}:square", [(3,)]) == [9]
    with pytest.raises(OSError, match=r"."):
        workers.run(f"{HERE}:square", [(3,)])
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(lambda n: run_bounded(f"{HERE}:square", [(n,), (n + 1,)]), range(8))
        assert list(results) == [[n * n, (n + 1) ** 2] for n in range(8)]


SCRIPT = """
import contextlib, os, signal, sys
from sdcore.grading.answers import grade
from sdcore.grading import worker
from sdcore.grading.bounded import run_bounded
def children(pid):
    pids = [int(p) for p in open(f"/proc/{pid}/task/{pid}/children").read().split()]
    return pids + [each for child in pids for each in children(child)]
assert grade("x+x", "2x").correct  # without a __main__ guard
print(*children(os.getpid()), flush=True)
if sys.argv[-1] == "fork":  # a forked process uses the same workers, and leaves them alone
    if (child := os.fork()) == 0:
        assert grade("x+x+x", "3x").correct
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
    assert grade("x+x+x+x", "4x").correct
if sys.argv[-1] == "loop":
    import asyncio
    async def main():
        assert grade("y+y", "2y").correct
    asyncio.run(main())
if sys.argv[-1] == "killed server":
    for pid in children(os.getpid()):
        with contextlib.suppress(ProcessLookupError):  # workers may end with their server
            os.kill(pid, signal.SIGKILL)
    assert grade("z+z", "2z").correct
if sys.argv[-1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[-1] == "fail":
    raise SystemExit(3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("given", "how", "code"),
    [
        ("file", "fail", 3), ("file", "kill", -9), ("file", "fork", 0), ("file", "loop", 0),
        ("file", "killed server", 0), ("standard input", "return", 0),
    ],
)  # fmt: skip
def test_scripts_need_no_guard_and_no_worker_outlives_them(tmp_path, given, how, code):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    run = subprocess.run(
        [sys.executable, script if given == "file" else "-", how],
        input=None if given == "file" else SCRIPT,
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (code, "")
    pids = [int(pid) for pid in run.stdout.split()]
    assert pids  # the server
    deadline = time.monotonic() + 60
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.05)


LIMITED = """
import resource, sys
from sdcore.grading.answers import grade
limit = int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # what `ulimit -v` does
try:
    print(grade("x+x", "2x").correct)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others do not keep to the limit")
@pytest.mark.parametrize(("mebibytes", "output"), [(4000, "True"), (60, SdcoreError.__name__)])
def test_a_limit_of_the_address_space_is_kept_and_named(mebibytes, output):
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(mebibytes)], capture_output=True, text=True,
        timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout.startswith(output), run.stdout + run.stderr
    assert ("ulimit -v" in run.stdout) == (output != "True")


def test_a_server_that_cannot_start_ends_without_the_interpreters_clean_up():
    code = (
        "import atexit, time; atexit.register(time.sleep, 600)\n"
        "from sdcore.grading.worker import serve; serve(-1)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and "negative file descriptor" in run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="others do not keep to the limit")
@pytest.mark.parametrize(
    ("soft", "hard", "limit"),
    [  # in bytes; a worker starts with 100 MiB and may add 512
        (-1, -1, 612 * 2**20),
        (400 * 2**20, -1, 400 * 2**20),
        (800 * 2**20, 900 * 2**20, 612 * 2**20),
        (500 * 2**20, 500 * 2**20, 500 * 2**20),
        (50 * 2**20, -1, 50 * 2**20),
    ],
)
def test_only_the_soft_limit_is_set_and_never_raised(monkeypatch, soft, hard, limit):
    pages, given = 100 * 2**20 // resource.getpagesize(), []
    monkeypatch.setattr(Path, "read_text", lambda path: f"{pages} 0 0")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: given.append(limits))
    room, limited = worker._limit_memory()
    assert given == [(limit, hard)]
    assert room == max(limit // 2**20 - 100, 0) and limited == (limit < 612 * 2**20)
