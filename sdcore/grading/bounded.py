"""Calls functions in worker processes with a bound on processor time and on memory.

`Workers` starts one server process (`worker.serve`), which imports and warms up what is needed. For
every request the server forks a handler, and the handler forks the workers:

    this process ── one byte and a socket ──▶ server ─fork─▶ handler ─fork─▶ worker, worker, …
          └──────────── request and results ─────────────────────┘

The server is a plain Python process: it never imports this process's ``__main__``, so that scripts
without a guard, ``python - < script``, notebooks and event loops work. It ends with this process,
however that ends, because its end of the control socket is closed then.
"""

import os
import resource
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterable, Sequence
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from sdcore.errors import SdcoreError
from sdcore.grading.worker import Exceeded, Request

CPU_SECONDS = 0.5  # per call; of the processor, since a busy machine must not change a result
ALONE_SECONDS = 1.5  # per call that exceeded a bound and is repeated in a worker of its own
MOST_WORKERS = 8
BATCH = 50  # calls per request; results of a request share one worker

_SERVE = "import sys; from sdcore.grading.worker import serve; serve(int(sys.argv[1]))"


def run_bounded(function: str, calls: Iterable[tuple[object, ...]]) -> list[Any | Exceeded]:
    """Results of ``package.module:function`` for each tuple of arguments, in order.

    A call that exceeds a bound is repeated once in a fresh worker of its own with a wider bound, so
    that what a worker did before, or a busy machine, changes no result. Works in any thread, and in
    a process forked from one that used it.

    Raises:
        SdcoreError: the workers cannot run.
        Exception: whatever the function raised.
    """
    calls = list(calls)
    if not calls:
        return []
    try:
        return _workers().run(function, calls)
    except OSError:  # the server was killed, or belonged to a process that ended
        _workers.cache_clear()
    try:
        return _workers().run(function, calls)
    except OSError as error:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        limited = limit != resource.RLIM_INFINITY
        raise SdcoreError(
            "the processes that compare answers end before they answer",
            got=f"an address space of {limit >> 20} MiB (`ulimit -v`)" if limited else repr(error),
            expected="a process that imports sympy, and forks",
            fix="raise `ulimit -v`" if limited else "look for the process's own message above",
        ) from error


@cache
def _workers() -> "Workers":
    """The workers of this process; two threads may create two, of which one is dropped."""
    return Workers()


class Workers:
    """A server process from which bounded workers are forked; ends with this object."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},  # sympy's order
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for this process
            )
        self.close = weakref.finalize(self, _end, self._control, process, os.getpid())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: str, calls: Sequence[tuple[object, ...]]) -> list[Any | Exceeded]:
        """Results in the order of the calls; see `run_bounded`.

        Raises:
            OSError: the server or a handler ended.
        """
        workers = min(MOST_WORKERS, os.cpu_count() or 1)
        size = max(1, min(BATCH, len(calls) // (2 * workers)))
        batches = [
            Request(function, tuple(calls[start : start + size]), CPU_SECONDS)
            for start in range(0, len(calls), size)
        ]
        results = [result for batch in self._answered(batches, workers) for result in batch]
        costly = [index for index, result in enumerate(results) if isinstance(result, Exceeded)]
        single = [Request(function, (calls[index],), ALONE_SECONDS) for index in costly]
        for index, batch in zip(costly, self._answered(single, workers), strict=True):
            results[index] = batch[0]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _answered(self, requests: list[Request], most: int) -> list[list[Any]]:
        """Results of each request; at most so many are answered at the same time."""
        waiting = list(enumerate(requests))[::-1]
        active: dict[Connection, int] = {}
        answers: list[list[Any]] = [[] for _ in requests]
        try:
            while waiting or active:
                while waiting and len(active) < most:
                    index, request = waiting.pop()
                    active[self._sent(request)] = index
                for connection in wait(list(active)):
                    assert isinstance(connection, Connection)
                    answers[active[connection]] = connection.recv()
                    del active[connection]
                    connection.close()
        except EOFError as error:
            raise ConnectionAbortedError("a handler ended") from error
        finally:
            for connection in active:
                connection.close()
        return answers

    def _sent(self, request: Request) -> Connection:
        ours, theirs = Pipe()
        with theirs:  # the control socket takes whole messages, so threads need no lock
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        ours.send(request)
        return ours


def _end(control: socket.socket, process: "subprocess.Popen[bytes]", owner: int) -> None:
    """End the server, unless this is a fork of the process that started it."""
    control.close()
    if os.getpid() == owner:
        process.kill()
    process.wait()
