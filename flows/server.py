"""The Prefect server of a workspace: one real local server, started and stopped with the run."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sdcore.errors import SdcoreError
from sdcore.guard import die_with_parent
from sdcore.loopback import answers, free_port

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    "PREFECT_CLI_PROMPT": "false",
}


@contextmanager
def prefect_server(root: Path) -> Iterator[Callable[[], str]]:
    """Start the workspace's server, unless ``PREFECT_API_URL`` names one of the user's.

    The server keeps its database in the workspace and listens on loopback only. Enter this before
    Prefect is imported, which reads its settings then. The server takes seconds to start, and so do
    the imports: what is yielded waits until it answers, and returns its API address.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    if given := os.environ.get("PREFECT_API_URL"):
        yield lambda: given
        return
    home = root / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_HOME"] = str(home.absolute())
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    log_path = root / "prefect-server.log"
    with log_path.open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start"]  # noqa: RUF005
            + ["--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads run yet
        )
    try:
        os.environ["PREFECT_API_URL"] = address
        yield partial(_healthy, address, server, log_path)
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        _send_what_is_queued()
        server.terminate()
        server.wait(timeout=20)


def _healthy(
    address: str, server: subprocess.Popen[bytes], log_path: Path, timeout: float = 60.0
) -> str:
    """Wait until the server answers and return its address.

    Raises:
        SdcoreError: it did not within `timeout` seconds.
    """
    if answers(f"{address}/health", server, timeout):
        return address
    raise SdcoreError(
        "the Prefect server did not start",
        got=f"exit code {server.poll()}",
        expected=f"an answer from {address} within {timeout:g} s",
        where=str(log_path),
        mend="read the log, or set PREFECT_API_URL to a running server",
    )


def _send_what_is_queued() -> None:
    """Let Prefect's background threads deliver logs and task states before the server goes."""
    from prefect.events.worker import EventsWorker  # noqa: PLC0415 - reads the settings
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=20)
