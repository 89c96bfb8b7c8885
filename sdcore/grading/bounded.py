"""Runs small functions in worker processes with a bound on processor time and on memory.

The workers are forked from a clean server process, which has no threads, no torch and none of this
process's memory, and which has imported and warmed up what they need. They start when first
needed and end with this process, however it ends.
"""

import atexit
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from sdcore.grading import algebra

CPU_SECONDS = 0.5  # a call; of the processor, so that a busy machine changes no result
WALL_SECONDS = 60.0  # a call; for one that waits for ever without computing
MEMORY = 512 * 2**20  # bytes of address space that a worker may add to what it starts with
MOST_WORKERS = 8

T = TypeVar("T")

_lock = threading.Lock()
_pools: list[ProcessPool] = []


@dataclass(frozen=True)
class Exceeded:
    """A call that was ended, and why."""

    reason: str


def run_bounded(
    function: Callable[..., T], calls: Iterable[tuple[object, ...]]
) -> list[T | Exceeded]:
    """Results of a module-level function for each tuple of arguments, in order.

    Works in any thread.

    Raises:
        Exception: whatever the function raised.
    """
    pool = _pool()
    futures = [pool.schedule(_timed, (function, *call), timeout=WALL_SECONDS) for call in calls]
    return [_outcome(future) for future in futures]


def _outcome(future: "ProcessFuture[T]") -> T | Exceeded:
    try:
        return future.result()
    except MemoryError:
        return Exceeded(f"takes more than {MEMORY >> 20} MiB of memory to be evaluated")
    except TimeoutError:
        return Exceeded(f"takes more than {WALL_SECONDS:g} s to be evaluated")
    except ProcessExpired as expired:
        if expired.exitcode == -signal.SIGPROF:
            return Exceeded(f"takes more than {CPU_SECONDS:g} s to be evaluated")
        return Exceeded(f"broke its worker process (exit code {expired.exitcode})")


def _pool() -> ProcessPool:
    with _lock:
        if not _pools or not _pools[-1].active:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["sdcore.grading.warm"])
            workers = min(MOST_WORKERS, os.cpu_count() or 1)
            _pools.append(ProcessPool(workers, initializer=_limit, context=context))
        return _pools[-1]


def _limit() -> None:
    """Prepare a worker."""
    algebra.warm_up()
    if sys.platform == "linux":  # others do not keep to this limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def _timed(function: Callable[..., T], *arguments: object) -> T:
    """Call a function; past its time the kernel ends the process, in C code too."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@atexit.register
def close() -> None:
    """End all workers."""
    while _pools:
        pool = _pools.pop()
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()
