"""Clients of servers: no proxy for servers on this machine, and errors that name the cause."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from sdcore.errors import EngineError

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def follows_environment(url: httpx.URL) -> bool:
    """Return whether proxies of the environment are used: not for this machine."""
    return url.host not in LOOPBACK


@contextmanager
def opening(address: str) -> Iterator[None]:
    """Explain why httpx opens no client: it raises whatever an address or a variable leads to.

    Raises:
        EngineError: names the address, and the variables that decide.
    """
    try:
        yield
    except (httpx.InvalidURL, ImportError, OSError, ValueError) as error:
        raise EngineError(
            "this server cannot be asked",
            got=f"{type(error).__name__}: {error}",
            where=address,
            fix="check the address, and the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, "
            "NO_PROXY, SSL_CERT_FILE and SSLKEYLOGFILE",
        ) from error
