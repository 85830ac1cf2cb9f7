"""The process around the application: its socket, its signals, its end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from pmd.serving.errors import ServingError
from pmd.serving.server.handlers import Handlers

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 1024
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


def url_of(listener: socket.socket) -> str:
    """The address a socket is bound to, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: Starlette, listener: socket.socket, *, timeout_seconds: float, on_ready: Callable[[], None]
) -> signal.Signals | None:
    """Answer requests until SIGINT or SIGTERM; then finish those running. Returns the signal.

    A second SIGINT gives up those running. timeout_seconds: of a request. on_ready: called when listening.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(2 * timeout_seconds + GRACE_SECONDS),
    )
    server = StoppingServer(config, app.state.handlers, on_ready)
    # From here on no signal is lost; uvicorn raises those it got once more at its end, which changes nothing then.
    previous = {each: signal.signal(each, server.handle_exit) for each in STOP_SIGNALS}
    try:
        server.run(sockets=[listener])
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
    return server.stopped_by


class StoppingServer(uvicorn.Server):
    """Tells the handlers at once that the process is stopping, while it still closes its sockets."""

    def __init__(self, config: uvicorn.Config, handlers: Handlers, on_ready: Callable[[], None]) -> None:
        """on_ready: called when it listens."""
        super().__init__(config)
        self.stopped_by: signal.Signals | None = None
        self._handlers, self._on_ready = handlers, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets=sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn new questions away from now on, and begin to stop."""
        self.stopped_by = self.stopped_by or signal.Signals(sig)
        self._handlers.stopping = True
        super().handle_exit(sig, frame)
