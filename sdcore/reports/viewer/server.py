"""A page on this machine to browse a run: problems, rollouts, steps, critique, tokens.

It reads the tables at each request, so it can stay open while the run goes on. The state is in the
address alone. Who may see it is for the caller to say: `sdcore view` puts a login before it.
"""

from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import polars as pl
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sdcore.config import Experiment
from sdcore.errors import StoreError
from sdcore.reports.html import render_page
from sdcore.reports.plots import colours
from sdcore.reports.viewer import browsing
from sdcore.store.database import Store

PAGE = 50  # rows
MAX_DIGITS = 9  # of a page's number that is read: Python refuses to read 5,000
# Another site's page can neither load ours nor, by a name that it points here, read it.
_HOSTS = ["127.0.0.1", "localhost"]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; "
    "script-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_STATIC = {"page.css": "text/css", "viewer.css": "text/css", "viewer.js": "text/javascript"}
_ROLLOUT_FILTERS = ("condition", "seed", "purpose", "round", "outcome")


def serve(app: ASGIApp, port: int) -> None:
    """Serve the application on loopback until Ctrl-C."""
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def viewer(store: Store) -> Starlette:
    """The application."""
    routes = [
        Route("/", _runs),
        *(Route(f"/{name}", _static) for name in _STATIC),
        Route("/{run}", _problems),
        Route("/{run}/problems/{problem}", _problem),
        Route("/{run}/rollouts/{rollout}", _rollout),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)],
        exception_handlers={HTTPException: _failed, StoreError: _busy},
    )
    app.state.store = store
    return app


def _runs(request: Request) -> Response:
    return _page("runs", request, title="Runs", runs=browsing.runs(_store(request)).to_dicts())


def _problems(request: Request) -> Response:
    run, asked = request.path_params["run"], dict(request.query_params)
    order = asked.get("order", "")
    found = browsing.problems(
        _store(request),
        run,
        text=asked.get("text", ""),
        split=asked.get("split", ""),
        condition=asked.get("condition", ""),
        order=order if order in browsing.ORDERS else "position",
    )
    return _page("problems", request, title=run, orders=browsing.ORDERS, **_paged(request, found))


def _problem(request: Request) -> Response:
    run, problem_id = request.path_params["run"], request.path_params["problem"]
    problems = _store(request).rows("problems", experiment_id=run, problem_id=problem_id)
    if not len(problems):
        raise HTTPException(404, f"no problem {problem_id} in {run}")
    problem = problems.row(0, named=True)
    filters = _filters(request)
    found = browsing.rollouts(_store(request), run, problem_id, filters)
    return _page(
        "problem", request, title=problem["question"], problem=problem,
        kept=_suffix(filters), **_paged(request, found),
    )  # fmt: skip


def _rollout(request: Request) -> Response:
    run, rollout_id = request.path_params["run"], request.path_params["rollout"]
    found = browsing.details(_store(request), run, rollout_id)
    if found is None:
        raise HTTPException(404, f"no rollout {rollout_id} in {run}")
    row = found.rollouts.row(0, named=True)
    own = {"experiment_id": run, "problem_id": row["problem_id"]}
    filters = _filters(request)
    listed = browsing.rollouts(_store(request), run, row["problem_id"], filters)
    ids = listed["rollout_id"].to_list()
    at = ids.index(rollout_id) if rollout_id in ids else None
    return _page(
        "rollout", request, title=f"{row['condition']}, seed {row['seed']}, round {row['round']}",
        rollout=row, critiques=found.critiques.to_dicts(), contexts=found.contexts.to_dicts(),
        maps=found.maps, problem=_store(request).rows("problems", **own).row(0, named=True),
        kept=_suffix(filters), at=at, count=len(ids),
        earlier=ids[at - 1] if at else None,
        later=ids[at + 1] if at is not None and at + 1 < len(ids) else None,
    )  # fmt: skip


def _page(name: str, request: Request, **values: Any) -> Response:
    run = request.path_params.get("run")
    values |= {"request": request, "run": run, "asked": request.query_params}
    if run is not None:
        rows = _store(request).rows("experiments", experiment_id=run)
        if not len(rows):
            raise HTTPException(404, f"no run {run} in this workspace")
        conditions = list(Experiment.model_validate_json(rows["config"][0]).conditions)
        values |= {
            "colours": colours(conditions),
            "choices": browsing.choices(_store(request), run),
        }
    return HTMLResponse(render_page(f"view-{name}.html.jinja", **values), headers=_HEADERS)


def _paged(request: Request, rows: pl.DataFrame) -> dict[str, Any]:
    """The rows of the asked page, and the addresses of its neighbours."""
    text, last = request.query_params.get("page", "1"), max(1, -(-len(rows) // PAGE))
    asked = int(text[-MAX_DIGITS:]) if text.isdecimal() else 1
    page = last if len(text) > MAX_DIGITS else min(max(asked, 1), last)
    first = (page - 1) * PAGE
    return {
        "rows": rows.slice(first, PAGE).to_dicts(),
        "count": len(rows),
        "first": first + 1,
        "earlier": request.url.include_query_params(page=page - 1) if first else None,
        "later": request.url.include_query_params(page=page + 1)
        if first + PAGE < len(rows) else None,
    }  # fmt: skip


def _filters(request: Request) -> dict[str, str]:
    asked = request.query_params
    return {name: asked[name] for name in _ROLLOUT_FILTERS if asked.get(name)}


def _suffix(filters: dict[str, str]) -> str:
    return f"?{urlencode(filters)}" if filters else ""


def _static(request: Request) -> Response:
    name = request.url.path.removeprefix("/")
    content = files("sdcore.reports").joinpath("templates", name).read_bytes()
    return Response(content, media_type=_STATIC[name], headers=_HEADERS)


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    page = render_page("view-failed.html.jinja", title=error.detail, run=None)
    return HTMLResponse(page, error.status_code, headers=_HEADERS)


def _busy(_: Request, error: Exception) -> Response:
    page = render_page("view-failed.html.jinja", title=str(error), run=None)
    return HTMLResponse(page, 503, headers=_HEADERS)


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store
