"""The ASGI application: bundles, limits and an optional key in, an application out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pmd.serving.scorer import Scorer
from pmd.serving.server.guard import Guard
from pmd.serving.server.handlers import PAGES, Handlers
from pmd.serving.server.limits import Limits
from pmd.serving.server.metrics import Metrics
from pmd.serving.server.refusals import Refusal
from pmd.serving.server.served import ServedBundle

OPEN_PATHS = frozenset({"/", "/docs", "/health", "/ready", *(f"/static/{name}" for name in PAGES)})


def create_app(
    scorers: Mapping[str, Scorer],
    *,
    limits: Limits | None = None,
    api_key: bytes | None = None,
    threads: int = 1,
) -> Starlette:
    """An application that answers from `scorers`, by the name each has in addresses.

    It is ready once its lifespan has started. api_key: what clients must give as a bearer token; None for no key.
    threads: calls of each Scorer at once, best with Scorers of one thread each, see docs/serving-http.md.
    Its Handlers are `app.state.handlers`; set their `stopping` to refuse new questions with 503.
    """
    limits, metrics = limits or Limits(), Metrics()
    bundles = {name: ServedBundle(name, scorer, limits, metrics, threads) for name, scorer in scorers.items()}
    handlers = Handlers(bundles, limits, metrics, needs_key=api_key is not None)
    routes = _routes(handlers)

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
        routes={route.endpoint: route.path for route in routes},
        open_paths=OPEN_PATHS,
        stopping=lambda: handlers.stopping,
        api_key=api_key,
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


def _routes(handlers: Handlers) -> list[Route]:
    one = "/v1/bundles/{bundle}"
    gets = {
        "/": handlers.page,
        "/docs": handlers.docs,
        "/static/{name}": handlers.static,
        "/openapi.json": handlers.openapi,
        "/health": handlers.health,
        "/ready": handlers.ready,
        "/metrics": handlers.counts,
        "/v1/bundles": handlers.list_bundles,
        f"{one}/relations": handlers.relations,
        f"{one}/entities": handlers.entities,
    }
    posts = {
        f"{one}/tails": handlers.tails,
        f"{one}/heads": handlers.heads,
        f"{one}/score": handlers.score,
        f"{one}/explain": handlers.explain,
    }
    return [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()] + [
        Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()
    ]


async def _as_refusal(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in our words. Raises Refusal."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.method[:20]} is not possible here; use {allowed}"
        raise Refusal(405, "wrong_method", message, error.headers) from error
    path = request.url.path
    raise Refusal(404, "not_found", f"there is nothing at {path[:60]!r}; see /docs", error.headers) from error
