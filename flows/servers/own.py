"""The Prefect server of a run: the workspace's standing one, or its own for as long as it lasts."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx

from flows.servers import standing
from flows.servers.named import named
from sdcore.errors import SdcoreError
from sdcore.keys import address_key, redacted, without_login
from sdcore.system.consoles import PlainConsole
from sdcore.system.ports import answers, free_port
from sdcore.system.supervise import die_with_parent

ANSWER_SECONDS = 30  # a busy machine's server needs a few
DRAIN_SECONDS = 20
_NOTES = PlainConsole(stderr=True)


@contextmanager
def prefect_server(root: Path) -> Iterator[Callable[[], str]]:
    """Start a server for the workspace, unless `sdcore up` or ``PREFECT_API_URL`` provides one.

    The server keeps its database in the workspace, unless the environment names another one, and
    listens on loopback only. What the environment names is said. Enter this before Prefect is
    imported, which reads its settings then. The server takes seconds to start, and so do the
    imports: call what is yielded after them; it waits until the server answers and returns its API
    address, without a login.
    """
    standing.require_workspace(root)
    say = partial(_NOTES.print, soft_wrap=True, markup=False, highlight=False)
    for line in named(root).values():
        say(line)
    with ExitStack() as starting:
        if not os.environ.get("PREFECT_API_URL"):
            starting.enter_context(standing.starting(root, say))
        os.environ.update(standing.environment(root))
        if given := os.environ.get("PREFECT_API_URL"):
            starting.close()
            standing.require_settings()
            try:
                yield partial(_reached, given, root)
            finally:
                _deliver()
            return
        with _started(root, starting) as ready:
            yield ready


@contextmanager
def _started(root: Path, starting: ExitStack) -> Iterator[Callable[[], str]]:
    """Run a server while the block does; `starting` is closed once it is ready."""
    assert "prefect" not in sys.modules, "its settings would name another server"
    address = f"http://127.0.0.1:{free_port()}"
    log_path = root / "prefect-server.log"
    with log_path.open("ab") as log:
        server = subprocess.Popen(
            standing.prefect_command(address),
            cwd=root / "prefect",
            stdout=log,
            stderr=log,
            env=os.environ | standing.prefect_server(root, address),
            umask=0o077,  # its database is for the user alone
            start_new_session=True,  # the terminal's Ctrl-C is not for it: the run reports to it
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads run yet
        )
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    try:
        standing.require_settings()
        yield partial(_ready, address, server, log_path, starting)
    finally:
        if "prefect" in sys.modules and server.poll() is None:
            _deliver()  # after an error too: at exit they would wait for a server that is gone
        os.environ.pop("PREFECT_API_URL", None)
        server.terminate()
        server.wait(timeout=standing.START_SECONDS)


def _reached(api: str, root: Path) -> str:
    """The address of a running server's API without its login, once it has answered a question.

    Raises:
        SdcoreError: nobody answers there, it is no Prefect server, or it refuses the login.
    """
    standing.require_listener(root, api.removesuffix("/api"))
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - reads the settings

    try:
        httpx.get(f"{api}/health", timeout=ANSWER_SECONDS)  # at once: Prefect's client tries again
        with get_client(sync_client=True) as client:
            client.read_flows(limit=1)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError) as error:
        raise SdcoreError(
            "no Prefect server answers",
            got=redacted(str(error), address_key(api)),
            where=f"PREFECT_API_URL = {without_login(api)}",
            fix="start that server and set PREFECT_API_AUTH_STRING or PREFECT_API_KEY if it wants "
            "a login, or unset the variable (`sdcore down` if `sdcore up` set it): then the "
            "command starts its own",
        ) from error
    return without_login(api)


def _ready(
    address: str, server: subprocess.Popen[bytes], log_path: Path, starting: ExitStack
) -> str:
    """Wait until the server is ready to work, let others start, and return its API's address.

    Raises:
        SdcoreError: it did not in time.
    """
    # /health answers before what the first other request has to wait for.
    answered = answers(f"{address}/api/ready", server, standing.START_SECONDS)
    starting.close()
    if answered:
        return f"{address}/api"
    raise SdcoreError(
        "the Prefect server did not start",
        got="; ".join(filter(None, [f"exit code {server.poll()}", standing.held(address)])),
        expected=f"an answer from {address}/api within {standing.START_SECONDS} s",
        where=str(log_path),
        fix="read the log, or set PREFECT_API_URL to a running server",
    )


def _deliver() -> None:
    """Let Prefect's workers deliver logs and task states before the server goes."""
    from prefect.events.worker import EventsWorker  # noqa: PLC0415 - reads the settings
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=DRAIN_SECONDS)
