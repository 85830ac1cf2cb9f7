"""The process around the application: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette

from pmd.serving.errors import ServingError
from pmd.serving.server.connections import Connections
from pmd.serving.server.handlers import Handlers
from pmd.serving.server.limits import Limits

FILES_OF_PROCESS, FILES_OF_BUNDLE = 64, 32  # open besides the connections; a bundle is there twice in a reload
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
RELOAD_SIGNAL = getattr(signal, "SIGHUP", None)  # Windows has none
BACKLOG = 1024  # connections that the system holds until they are taken
TAKEN_AT_ONCE = 32  # of them; asyncio takes as many as may wait, before it does anything else
TURNS_TO_CLOSE = 4  # of the event loop, from taking a connection to having closed those that made room for it
GRACE_SECONDS = 5.0  # beyond the time limit of a request, before those still running are given up


class AddressError(ServingError):
    """The address cannot be listened on: taken, unknown, or not allowed."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket of this address that does not listen yet; port 0 takes a free one. Raises AddressError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressError(f"cannot use the address {host} port {port}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise AddressError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --host or --port"
        ) from error
    return listener


def other_files(bundles: int) -> int:
    """Open files of a server of so many bundles besides its connections, with room to spare."""
    return FILES_OF_PROCESS + TURNS_TO_CLOSE * TAKEN_AT_ONCE + FILES_OF_BUNDLE * bundles


def url_of(listener: socket.socket) -> str:
    """The address a socket is bound to, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: Starlette, listener: socket.socket, *, limits: Limits, on_ready: Callable[[], None]
) -> signal.Signals | None:
    """Answer requests until SIGINT or SIGTERM; then finish those running. Returns the signal.

    A second SIGINT gives up those running. SIGHUP opens all bundles afresh, if the application can. limits: of time
    and of connections. on_ready: called when listening.
    """
    server = server_of(app, limits, on_ready)
    # From here on no signal is lost; uvicorn raises those it got once more at its end, which changes nothing then.
    previous = {each: signal.signal(each, server.handle_exit) for each in STOP_SIGNALS}
    if app.state.handlers.reloads and RELOAD_SIGNAL is not None:
        previous[RELOAD_SIGNAL] = signal.signal(RELOAD_SIGNAL, server.handle_reload)
    try:
        server.run(sockets=[listener])
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
    return server.stopped_by


def server_of(app: Starlette, limits: Limits, on_ready: Callable[[], None]) -> StoppingServer:
    """The server of an application, with the limits of `serve`."""
    handlers: Handlers = app.state.handlers
    connections = Connections(limits, handlers.metrics)
    config = uvicorn.Config(
        app,
        http=cast(Any, connections.new),  # called as a class would be
        log_config=None,
        log_level="error",  # anybody can cause its warnings, as many as he likes
        access_log=False,
        server_header=False,
        ws="none",
        backlog=TAKEN_AT_ONCE,
        timeout_graceful_shutdown=int(2 * limits.timeout_seconds + GRACE_SECONDS),
    )
    return StoppingServer(config, handlers, on_ready, connections)


class StoppingServer(uvicorn.Server):
    """Tells the handlers at once that the process is stopping, while it still closes its sockets."""

    def __init__(
        self,
        config: uvicorn.Config,
        handlers: Handlers,
        on_ready: Callable[[], None],
        connections: Connections | None = None,
    ) -> None:
        """on_ready: called when it listens. connections: to sweep, if they are kept within limits."""
        super().__init__(config)
        self.stopped_by: signal.Signals | None = None
        self._handlers, self._on_ready, self._connections = handlers, on_ready, connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)
        if self._connections is not None:
            self._sweeping = asyncio.create_task(self._connections.sweep())
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what runs; slow clients are still cut off meanwhile."""
        await super().shutdown(sockets=sockets)
        if self._sweeping is not None:
            self._sweeping.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn new questions away from now on, and begin to stop."""
        self.stopped_by = self.stopped_by or signal.Signals(sig)
        self._handlers.stopping = True
        super().handle_exit(sig, frame)

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        """Open all bundles afresh, beside what is being answered."""
        if self._loop is not None:  # else they are about to be served as they were just opened
            self._loop.call_soon_threadsafe(self._handlers.reload_all)
