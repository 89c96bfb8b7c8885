"""Servers that we start on this machine: a free port, and waiting for the first answer."""

import socket
import subprocess
import time
from contextlib import suppress

import httpx


def free_port() -> int:
    """A port on loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(
    url: str,
    process: "subprocess.Popen[bytes]",
    timeout: float,
    login: tuple[str, str] | None = None,
    transport: httpx.BaseTransport | None = None,
) -> bool:
    """Wait until a GET of the address succeeds; False if the process ends or `timeout` s pass.

    `login` is the user and the password that the server asks for, `transport` takes the request to
    a server that listens on no port.
    """
    deadline = time.monotonic() + timeout
    with httpx.Client(timeout=1, trust_env=False, auth=login, transport=transport) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if client.get(url).is_success:
                    return True
            time.sleep(0.1)
    return False
