"""Servers that we start on this machine: a free port, and waiting for the first answer."""

import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import psutil


def free_port() -> int:
    """A port on loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(processes: Iterable[psutil.Process], address: str) -> bool:
    """Return whether one of the processes listens on the port of an address of this machine."""
    port = urlsplit(address).port
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if any(
                each.status == psutil.CONN_LISTEN and each.laddr.port == port
                for each in process.net_connections("tcp")
            ):
                return True
    return False


def answers(
    url: str,
    process: "subprocess.Popen[bytes]",
    timeout: float,
    login: tuple[str, str] | None = None,
    transport: httpx.BaseTransport | None = None,
    server: "subprocess.Popen[bytes] | None" = None,
) -> bool:
    """Wait until a GET of the address succeeds; False if the process ends or `timeout` s pass.

    Nothing is sent to a port before the server, or a child of it, listens there: another user's
    program may have taken the port first, and would be given the login.

    Args:
        url: the address.
        process: what is waited for.
        timeout: seconds.
        login: the user and the password that the server asks for.
        transport: takes the request to a server that listens on no port.
        server: what listens at the address; `process` by default.
    """
    deadline = time.monotonic() + timeout
    with httpx.Client(timeout=1, trust_env=False, auth=login, transport=transport) as client:
        while process.poll() is None and time.monotonic() < deadline:
            if transport is not None or listens(_family(server or process), url):
                with suppress(httpx.TransportError):
                    if client.get(url).is_success:
                        return True
            time.sleep(0.1)
    return False


def _family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The process, and all that it has started, directly or not."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []
