"""The server that workers are forked from, its handlers, and the workers. See `bounded`."""

import gc
import os
import pkgutil
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

WALL_SECONDS = 60.0  # per call; for one that waits for ever without computing
MEMORY = 512 * 2**20  # bytes of address space that a worker may add to what it starts with


@dataclass(frozen=True)
class Exceeded:
    """A call that was ended, and why."""

    reason: str


@dataclass(frozen=True)
class Request:
    """Calls of ``package.module:function``, each with a bound of processor seconds."""

    function: str
    calls: tuple[tuple[object, ...], ...]
    seconds: float


def serve(control: int) -> NoReturn:
    """Fork a handler for every socket that arrives, until the other end of `control` closes.

    Then, or after an error, which is printed, the process ends without the interpreter's clean-up:
    where memory is short that may never return, and the other side would wait for an answer.
    """
    code = 1
    try:
        _fork_handlers(control)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _fork_handlers(control: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the handlers
    from sdcore.grading import algebra  # noqa: PLC0415 - heavy, and callers import this module

    algebra.warm_up()
    gc.freeze()  # leave what is shared with forks untouched
    with socket.socket(fileno=control) as requests:
        while True:
            message, descriptors, *_ = socket.recv_fds(requests, 1, 1)
            if not message:
                return
            if os.fork() == 0:
                requests.close()
                _leave_after(_handle, Connection(descriptors[0]))
            os.close(descriptors[0])


def _handle(client: Connection) -> None:
    """Answer one request: a list of results, exceptions that were raised, and `Exceeded`."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request: Request = client.recv()
    function = pkgutil.resolve_name(request.function)
    results: list[Any] = []
    while len(results) < len(request.calls):
        results += _computed(client, function, request.calls[len(results) :], request.seconds)
    client.send(results)


def _computed(
    client: Connection, function: Callable[..., Any], calls: Any, seconds: float
) -> list[Any]:
    """Results of one fresh worker, up to the call that it does not survive."""
    ours, theirs = Pipe(duplex=False)
    worker = os.fork()
    if worker == 0:
        client.close()
        _leave_after(_work, theirs, function, calls, seconds)
    theirs.close()
    results: list[Any] = []
    reason = ""
    while len(results) < len(calls) and not reason:
        ready = wait([ours, client], WALL_SECONDS)
        try:
            if client in ready:  # nothing is sent after the request: the client is gone
                os.kill(worker, signal.SIGKILL)
                return [None for _ in calls]
            if not ready:
                os.kill(worker, signal.SIGKILL)
                reason = f"takes more than {WALL_SECONDS:g} s to be evaluated"
                break
            results.append(ours.recv())
            if isinstance(results[-1], Exceeded):
                break
        except EOFError:
            break
    _, status = os.waitpid(worker, 0)
    if len(results) == len(calls) or (results and isinstance(results[-1], Exceeded)):
        return results
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGPROF:
        reason = f"takes more than {seconds:g} s to be evaluated"
    return [*results, Exceeded(reason or f"broke its worker process (exit code {code})")]


def _work(results: Connection, function: Callable[..., Any], calls: Any, seconds: float) -> None:
    """Send the result of each call; past its time the kernel ends this process, in C code too."""
    room, limited = _limit_memory()
    for arguments in calls:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            result = function(*arguments)
        except MemoryError:
            cause = "; `ulimit -v` leaves no more" if limited else ""
            result = Exceeded(f"takes more than {room} MiB of memory to be evaluated{cause}")
        except Exception as error:
            result = error
        signal.setitimer(signal.ITIMER_PROF, 0)
        results.send(result)
        if isinstance(result, Exceeded):
            return  # what is left of the memory is nobody's to use


def _limit_memory() -> tuple[int, bool]:
    """Lower the soft limit of the address space, never the hard one.

    Returns the MiB that may be added, and whether an earlier limit (`ulimit -v`) is what bounds it.
    """
    if sys.platform != "linux":  # others do not keep to this limit
        return MEMORY >> 20, False
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    earlier = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    limit = min([used + MEMORY, *earlier])
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return max(limit - used, 0) >> 20, limit < used + MEMORY


def _leave_after(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a forked process and end it, without the parent's clean-up."""
    try:
        function(*arguments)
    except (EOFError, OSError):
        os._exit(1)  # the other end is gone
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)
