import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdcore.grading.bounded import CPU_SECONDS, MEMORY, Exceeded, close, run_bounded
from tests.helpers.paths import ROOT


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
    assert run_bounded(square, [(n,) for n in range(200)]) == [n * n for n in range(200)]
    assert run_bounded(square, []) == []


def test_a_call_is_bounded_in_processor_time_and_its_neighbours_lose_nothing():
    calls = [(10,), (10**8,), (11,)]
    first, slow, last = run_bounded(power, calls)
    assert (first, last) == (10, 11)
    assert slow == Exceeded(f"takes more than {CPU_SECONDS:g} s to be evaluated")
    assert run_bounded(square, [(3,)]) == [9]


def test_a_call_is_bounded_in_memory():
    small, large = run_bounded(fill, [(MEMORY // 2,), (2 * MEMORY,)])
    assert small == MEMORY // 2
    assert isinstance(large, Exceeded) and "MiB of memory" in large.reason


def test_a_call_that_breaks_its_worker_is_told_from_one_that_fails():
    assert run_bounded(crash, [(1,)]) == [Exceeded("broke its worker process (exit code -11)")]
    with pytest.raises(KeyError, match="7"):
        run_bounded(refuse, [(7,)])


def test_workers_share_nothing_with_this_process_and_are_warm():
    import torch  # noqa: F401

    assert run_bounded(loaded, [("torch",), ("math_verify",)]) == [False, True]


def test_any_thread_may_call_and_a_closed_pool_opens_again():
    close()
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(lambda n: run_bounded(square, [(n,), (n + 1,)]), range(8))
        assert list(results) == [[n * n, (n + 1) ** 2] for n in range(8)]


SCRIPT = """
import os, signal, sys, time
from sdcore.grading.algebra import equal
from sdcore.grading.bounded import run_bounded
def children(pid):
    found = [int(p) for p in open(f"/proc/{pid}/task/{pid}/children").read().split()]
    return found + [each for child in found for each in children(child)]
if __name__ == "__main__":
    assert run_bounded(equal, [("1/2", "0.5")]) == [True]
    print(*children(os.getpid()), flush=True)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "fail":
        raise SystemExit(3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("how", "code"), [("return", 0), ("fail", 3), ("kill", -9)])
def test_no_worker_outlives_the_process_however_it_ends(tmp_path, how, code):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    run = subprocess.run(
        [sys.executable, script, how], capture_output=True, text=True, cwd=ROOT, timeout=90,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) >= 2  # the server and a worker
    deadline = time.monotonic() + 20
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        os.sched_yield()
