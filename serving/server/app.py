"""The ASGI application: bundles, limits and optional keys in, an application out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pmd.serving.scorer import Scorer
from pmd.serving.server.admin import AdminHandlers
from pmd.serving.server.changes import Reopen
from pmd.serving.server.guard import Guard
from pmd.serving.server.handlers import PAGES, Handlers
from pmd.serving.server.keys import Keys
from pmd.serving.server.limits import Limits
from pmd.serving.server.metrics import Metrics
from pmd.serving.server.refusals import Refusal
from pmd.serving.server.schemas import change_models
from pmd.serving.server.served import ServedBundle

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
Endpoints: TypeAlias = dict[str, dict[str, Endpoint]]
"""By path, then by method."""

ONE = "/v1/bundles/{bundle}"
OPEN_PATHS = frozenset({"/", "/docs", "/health", "/ready", *(f"/static/{name}" for name in PAGES)})


def create_app(
    scorers: Mapping[str, Scorer],
    *,
    limits: Limits | None = None,
    api_key: bytes | None = None,
    admin_key: bytes | None = None,
    reopen: Reopen | None = None,
    threads: int = 1,
) -> Starlette:
    """An application that answers from `scorers`, by the name each has in addresses.

    It is ready once its lifespan has started. api_key: what clients must give as a bearer token; None for no key.
    admin_key: what those must give who change bundles; None, and nobody can. reopen: opens the bundle of a name
    afresh when an admin asks for it, see `changes.Reopen`; Scorers that are replaced are closed.
    threads: calls of each Scorer at once, best with Scorers of one thread each, see docs/serving-http.md.
    Its Handlers are `app.state.handlers`; set their `stopping` to refuse new questions with 503.
    """
    limits, metrics, keys = limits or Limits(), Metrics(), Keys(api_key, admin_key)
    changes = None if admin_key is None else change_models(limits)
    reopen = None if changes is None else reopen
    bundles = {
        name: ServedBundle(name, scorer, limits, metrics, threads, reopen) for name, scorer in scorers.items()
    }
    handlers = Handlers(
        bundles, limits, metrics, needs_key=api_key is not None, changes=changes, reloads=reopen is not None
    )
    endpoints = _endpoints(handlers)
    if changes is not None:
        _add_admin(endpoints, AdminHandlers(handlers, keys, changes), reloads=reopen is not None)
    routes = [Route(path, _by_method(those), methods=list(those)) for path, those in endpoints.items()]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        handlers.started = True
        yield
        handlers.stopping = True
        for bundle in bundles.values():
            bundle.close()

    guard = Middleware(
        Guard,
        metrics=metrics,
        routes={route.endpoint: route.path.replace(":path}", "}") for route in routes},
        open_paths=OPEN_PATHS,
        stopping=lambda: handlers.stopping,
        keys=keys,
    )
    app = Starlette(
        routes=routes,
        middleware=[guard],
        exception_handlers={HTTPException: _as_refusal},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.handlers = handlers
    return app


def _endpoints(handlers: Handlers) -> Endpoints:
    gets: dict[str, Endpoint] = {
        "/": handlers.page,
        "/docs": handlers.docs,
        "/static/{name}": handlers.static,
        "/openapi.json": handlers.openapi,
        "/health": handlers.health,
        "/ready": handlers.ready,
        "/metrics": handlers.counts,
        "/v1/bundles": handlers.list_bundles,
        f"{ONE}/relations": handlers.relations,
        f"{ONE}/entities": handlers.entities,
    }
    posts: dict[str, Endpoint] = {
        f"{ONE}/tails": handlers.tails,
        f"{ONE}/heads": handlers.heads,
        f"{ONE}/score": handlers.score,
        f"{ONE}/explain": handlers.explain,
    }
    return {path: {"GET": endpoint} for path, endpoint in gets.items()} | {
        path: {"POST": endpoint} for path, endpoint in posts.items()
    }


def _add_admin(endpoints: Endpoints, admin: AdminHandlers, *, reloads: bool) -> None:
    endpoints[f"{ONE}/entities"]["POST"] = admin.add
    # An id may hold slashes, as those of RDF graphs do.
    endpoints[f"{ONE}/entities/{{entity:path}}"] = {"PATCH": admin.update, "DELETE": admin.remove}
    if reloads:
        endpoints[f"{ONE}/reload"] = {"POST": admin.reload}


def _by_method(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


async def _as_refusal(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in our words. Raises Refusal."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.method[:20]} is not possible here; use {allowed}"
        raise Refusal(405, "wrong_method", message, error.headers) from error
    path = request.scope["path"]  # not its URL: a query that is no UTF-8 has none
    raise Refusal(404, "not_found", f"there is nothing at {path[:60]!r}; see /docs", error.headers) from error
