"""Guard before Prefect's, MLflow's and the viewer's servers: it refuses strangers.

All listen on loopback, which every user of the machine reaches, and every page in a browser: one
of another site whose name is made to point here (DNS rebinding), or one that another local program
serves. So a request must name this machine in `Host`, must not come from another page (`Origin`),
and must bring the server's key. Prefect checks the key itself; MLflow's own login is an experiment
with a database of users, so the guard does it, and for the viewer too. It uses HTTP's basic
authentication, which browsers keep for one port; they send a cookie to every port of a machine, and
so to the servers of its other users.
"""

import hmac
import os
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.servers.login import HOSTS, PATH, Login, login

# Prefect's pages keep what its form asks for under this name; should another version have another
# one, its form asks.
_TAKE_LOGIN = """<!DOCTYPE html><title>sdcore: log in</title><script>
localStorage.setItem("prefect-password", location.hash.slice(1));
location.replace("/");
</script>"""

ASK = "the command that started this server prints how to log in"


class Guard:
    """Refuse requests of other pages and, given a key, those without it; then show the login.

    Args:
        app: the server's application.
        after_login: answers at the path that the login page leads to.
        authorization: the header that a request must have; None: the application checks it.
        public: paths that ask for no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        after_login: ASGIApp,
        authorization: str | None,
        public: Collection[str] = (),
    ) -> None:
        self._app, self._after_login = app, after_login
        self._authorization, self._public = authorization, public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        answer: ASGIApp = self._app
        if scope["type"] in ("http", "websocket"):
            answer = self._refusal(scope) or self._app
            if answer is self._app and scope["path"] == PATH:
                answer = self._after_login
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not all(_is_own(origin, scope["server"][1]) for origin in headers.getlist("origin")):
            return PlainTextResponse("a page of another site may not ask this server", 403)
        if self._authorization is None or scope["path"] in self._public:
            return None
        given = headers.get("authorization", "")
        if hmac.compare_digest(given.encode(), self._authorization.encode()):
            return None
        ask = {"WWW-Authenticate": 'Basic realm="sdcore", charset="UTF-8"'}
        return PlainTextResponse(ASK, 401, ask)


def prefect() -> ASGIApp:
    """Prefect's server, guarded; for uvicorn."""
    from prefect.server.api.server import create_app  # noqa: PLC0415 - only in its process
    from prefect.settings import get_current_settings  # noqa: PLC0415

    if not get_current_settings().server.api.auth_string:
        raise RuntimeError("PREFECT_SERVER_API_AUTH_STRING is not set: anybody could come in")
    take = HTMLResponse(_TAKE_LOGIN, headers={"Cache-Control": "no-store"})
    return _guarded(create_app(final=True), take, None)


def mlflow() -> ASGIApp:
    """MLflow's server, guarded; for `mlflow server --app-name sdcore`."""
    from mlflow.server.fastapi_app import app  # noqa: PLC0415 - only in its process

    known = login(Path(os.environ["SDCORE_WORKSPACE"]))
    return guarded(app, known, "/", public=("/health",))


def guarded(app: ASGIApp, known: Login, first: str, public: Collection[str] = ()) -> ASGIApp:
    """Let in who brings the key; the login leads to the application's page `first`."""

    async def to_first(scope: Scope, receive: Receive, send: Send) -> None:
        """By an address without the key: a page with it cannot fetch."""
        host, port = scope["server"]
        await RedirectResponse(f"http://{host}:{port}{first}", 303)(scope, receive, send)

    return _guarded(app, to_first, f"Basic {known.encoded}", public)


def _guarded(
    app: ASGIApp, after_login: ASGIApp, authorization: str | None, public: Collection[str] = ()
) -> ASGIApp:
    return TrustedHostMiddleware(Guard(app, after_login, authorization, public), list(HOSTS))


def _is_own(origin: str, port: int) -> bool:
    """Return whether a page of this server asks; a request without an origin is a program's."""
    try:
        site = urlsplit(origin)
        return (site.scheme, site.hostname in HOSTS, site.port or 80) == ("http", True, port)
    except ValueError:
        return False
