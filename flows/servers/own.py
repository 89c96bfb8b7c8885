"""The Prefect server of a run: the workspace's standing one, or its own for as long as it lasts."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx

from flows.servers import standing
from sdcore.errors import SdcoreError
from sdcore.system.ports import answers, free_port
from sdcore.system.supervise import die_with_parent

_VERSION_CHECK = "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED"
# They are for a server that stays, and keep its tables busy: one flow in thirty started two seconds
# late, when its client tried again.
_AUTOMATIONS = "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED"
ANSWER_SECONDS = 30  # a busy machine's server needs a few


@contextmanager
def prefect_server(root: Path) -> Iterator[Callable[[], str]]:
    """Start a server for the workspace, unless `sdcore up` or ``PREFECT_API_URL`` provides one.

    The server keeps its database in the workspace and listens on loopback only. Enter this before
    Prefect is imported, which reads its settings then. The server takes seconds to start, and so do
    the imports: what is yielded waits until it answers, and returns its API address.
    """
    standing.require_workspace(root)
    os.environ.update(standing.environment(root))
    if given := os.environ.get("PREFECT_API_URL"):
        try:
            yield partial(_reached, given)
        finally:
            _finish_background_work()
        return
    assert "prefect" not in sys.modules, "its settings would name another server"
    address = f"http://127.0.0.1:{free_port()}"
    log_path = root / "prefect-server.log"
    with log_path.open("ab") as log:
        server = subprocess.Popen(
            standing.prefect_command(address),
            env={_AUTOMATIONS: "false"} | os.environ,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads run yet
        )
    with ThreadPoolExecutor(1) as beside, ExitStack() as stack:
        stack.callback(_end, server)
        api = beside.submit(_ready, f"{address}/api", server, log_path)
        os.environ["PREFECT_API_URL"] = f"{address}/api"
        os.environ[_VERSION_CHECK] = "false"  # half a second; it is the same installation

        def reached() -> str:
            found = api.result()
            stack.enter_context(without_heartbeats())  # such a server outlives no run
            return found

        yield reached


@contextmanager
def without_heartbeats() -> Iterator[None]:
    """Flow runs inside send none: at its end one waits up to a second for the thread that does."""
    from prefect.settings import (  # noqa: PLC0415 - reads the settings
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _end(server: subprocess.Popen[bytes]) -> None:
    for name in ("PREFECT_API_URL", _VERSION_CHECK):
        os.environ.pop(name, None)
    try:
        _finish_background_work()
    finally:
        server.terminate()
        server.wait(timeout=standing.START_SECONDS)


def _reached(api: str) -> str:
    """The address of a running server's API, once it has answered, whatever it said.

    Raises:
        SdcoreError: nobody answers there.
    """
    try:
        httpx.get(f"{api}/health", timeout=ANSWER_SECONDS)
    except httpx.TransportError as error:
        raise SdcoreError(
            "no Prefect server answers",
            got=error,
            where=f"PREFECT_API_URL = {api}",
            fix="start that server, or unset the variable (`sdcore down` if `sdcore up` set it): "
            "then the command starts its own",
        ) from error
    return api


def _ready(api: str, server: subprocess.Popen[bytes], log_path: Path) -> str:
    """Wait until the server is ready to work and return its API's address.

    Raises:
        SdcoreError: it did not in time.
    """
    # /health answers before what the first other request has to wait for.
    if answers(f"{api}/ready", server, standing.START_SECONDS):
        return api
    raise SdcoreError(
        "the Prefect server did not start",
        got=f"exit code {server.poll()}",
        expected=f"an answer from {api} within {standing.START_SECONDS} s",
        where=str(log_path),
        fix="read the log, or set PREFECT_API_URL to a running server",
    )


def _finish_background_work() -> None:
    """Let Prefect's background threads deliver logs and task states before the server goes.

    Their event loop is stopped too: its thread keeps the contexts of the runs, and through them all
    modules, beyond the interpreter's end, of which DuckDB's binding then complains as leaks.
    """
    from prefect._internal.concurrency.threads import (  # noqa: PLC0415 - reads the settings
        wait_for_global_loop_exit,
    )
    from prefect.events.worker import EventsWorker  # noqa: PLC0415
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=20)
    wait_for_global_loop_exit(timeout=20)
