"""What stands before every request: the key, the stop, the metrics, and the last resort for our own failures."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pmd.serving.server.keys import Keys
from pmd.serving.server.metrics import Metrics
from pmd.serving.server.refusals import CLIENT_GONE, Refusal
from pmd.serving.server.replies import NOT_KEPT, SAFE, error_reply

logger = logging.getLogger(__name__)

UNROUTED = "(none)"


class Guard:
    """ASGI middleware. No exception leaves it and no traceback reaches a client: both go to the log, with an id."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        routes: Mapping[object, str],
        open_paths: frozenset[str],
        stopping: Callable[[], bool],
        keys: Keys,
    ) -> None:
        """routes: the path of each endpoint, for the metrics. open_paths: those that need no key."""
        self._app, self._metrics, self._routes, self._open = app, metrics, routes, open_paths
        self._stopping, self._keys = stopping, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_safe(message["headers"])
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, sending)
        except Refusal as refusal:
            await self.refuse(refusal, scope, receive, sending)
        except Exception:  # the last resort
            failure = _logged(scope)
            if not status:
                await self.refuse(failure, scope, receive, sending)
        finally:
            path = self._routes.get(scope.get("endpoint"), UNROUTED)
            method = scope["method"] if path != UNROUTED else UNROUTED
            self._metrics.requests.labels(path, method, status or CLIENT_GONE).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a refusal, and count it."""
        self._metrics.rejected.labels(refusal.code).inc()
        await error_reply(refusal)(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        path = scope["path"]
        if path in self._open:
            return
        self._keys.check_question(Headers(scope=scope))
        if self._stopping():
            raise Refusal(503, "stopping", "the server is stopping; ask another one", {"Retry-After": "5"})


def _with_safe(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept = [] if any(name == NOT_KEPT[0] for name, _ in headers) else [NOT_KEPT]
    return [*headers, *SAFE, *kept]


def _logged(scope: Scope) -> Refusal:
    """Log the exception that is being handled; what the client is told of it."""
    failure = uuid.uuid4().hex[:8]
    logger.exception("failure %s: %s %r", failure, scope["method"], scope["path"])
    return Refusal(500, "internal", f"the server failed; its log has the cause under {failure}")
