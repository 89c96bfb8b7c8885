"""The command `sdcore` with one fault: `python -m tests.helpers.faulty POINT N FAULT run …`.

At the Nth pass of the point the process is killed (`kill`), or the system says ENOSPC, EIO or
EACCES there, once.
"""

import errno
import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows.commands.main import main
from sdcore.store import database

LOGGING = [name for name in vars(MlflowClient) if name.startswith(("log_", "create_", "set_"))]


def failing(nth: int, fault: str, raised: Callable[[int], Exception]) -> Callable[[], None]:
    """Count the passes of a point; fail at the Nth."""
    passes = itertools.count(1)

    def check() -> None:
        if next(passes) != nth:
            return
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise raised(getattr(errno, fault))

    return check


def before(check: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        check()
        return function(*arguments, **options)

    return checked


def system(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def install(point: str, nth: int, fault: str) -> None:
    if point == "commit":
        check = failing(nth, fault, lambda code: duckdb.IOException(os.strerror(code)))
        committed = database._committed

        @contextmanager
        def commit(connection: duckdb.DuckDBPyConnection) -> Any:
            with committed(connection):
                yield
                check()  # all is written, nothing is committed

        database._committed = commit
    elif point == "mlflow":
        check = failing(nth, fault, lambda code: MlflowException(os.strerror(code)))
        for name in LOGGING:
            setattr(MlflowClient, name, before(check, getattr(MlflowClient, name)))
    else:
        where, name = {"rename": (Path, "rename"), "fsync": (os, "fsync")}[point]
        setattr(where, name, before(failing(nth, fault, system), getattr(where, name)))


if __name__ == "__main__":
    point, nth, fault, *arguments = sys.argv[1:]
    install(point, int(nth), fault)
    sys.argv = ["sdcore", *arguments]
    main()
