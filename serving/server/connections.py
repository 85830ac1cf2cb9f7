"""Connections whose clients are slow, silent or too many: how long each may let the server wait.

uvicorn closes a connection that is idle between two requests, and no other: a client that sends a header byte by
byte, or never reads its answer, would hold it for good. Here every phase has an end, and when all connections are
taken, those that let the server wait the longest make room for a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pmd.serving.server.limits import Limits
from pmd.serving.server.metrics import Metrics
from pmd.serving.server.refusals import Refusal
from pmd.serving.server.replies import NOT_KEPT, SAFE, error_reply

READ_BYTES = 16_384  # at a time: asyncio's 256 KiB of small pieces would hold up all others for half a second
SLOWEST_BYTES_PER_SECOND = 16_384  # at which a client must take an answer, when the time of a request is over
SWEEP_SECONDS = 0.5
EVICTED_SHARE = 20  # one in so many is closed at once when all connections are taken: looking for them takes 1 ms
CLOSE = (b"connection", b"close")


class Connections:
    """All connections of a server, within its limits. Used from its event loop."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        """limits: `max_connections`, `header_seconds` and `timeout_seconds`."""
        self._limits, self._metrics = limits, metrics
        self._open: set[Connection] = set()
        metrics.watch_connections(lambda: len(self._open))

    def new(self, **given: Any) -> Connection:
        """The protocol of a connection, for uvicorn."""
        return Connection(self, self._limits, **given)

    def admit(self, connection: Connection) -> None:
        """Count a connection that was made; if there is no room for it, refuse it."""
        if len(self._open) >= self._limits.max_connections:
            self._make_room()
        if len(self._open) < self._limits.max_connections:
            self._open.add(connection)
            return
        self._metrics.cut.labels("too_many").inc()
        message = f"{len(self._open)} connections are open and all are being answered; try again"
        connection.say(Refusal(503, "too_many_connections", message, {"Retry-After": "1"}))

    def forget(self, connection: Connection) -> None:
        """Do not count it any more."""
        self._open.discard(connection)

    async def sweep(self) -> None:
        """Close what is overdue, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for connection in list(self._open):
                why = connection.cut_if_overdue(now)
                if why is not None:
                    self._metrics.cut.labels(why).inc()

    def _make_room(self) -> None:
        """Close some of those that let us wait: first those that never finished a request, the oldest first."""
        waiting = [each for each in self._open if each.lets_wait]
        waiting.sort(key=lambda each: (each.was_answered, each.since))
        for each in waiting[: max(1, self._limits.max_connections // EVICTED_SHARE)]:
            self._metrics.cut.labels("made_room").inc()
            each.cut()


class Connection(H11Protocol):
    """A connection of uvicorn's with an end to each of its phases."""

    def __init__(self, connections: Connections, limits: Limits, **given: Any) -> None:
        """given: what uvicorn gives to each of its protocols."""
        super().__init__(**given)
        self._connections, self._limits = connections, limits
        self.since = time.monotonic()
        """When the present phase began: waiting for a request, or for its answer."""
        self.was_answered = False
        self._drained_by: float | None = None

    @property
    def lets_wait(self) -> bool:
        """Whether it is the client's turn: to send its request, to go on with it, or to take the answer."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY) or self.transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin, if there is room."""
        super().connection_made(transport)
        cast(Any, transport).max_size = READ_BYTES
        self._connections.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._connections.forget(self)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Read what was sent; with the last header of a request its next phase begins."""
        before = self.conn.their_state
        super().handle_events()
        if before is h11.IDLE and self.conn.their_state is not h11.IDLE:
            self.since = time.monotonic()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless the rest of this one would cost more than its answer."""
        self.since, self.was_answered, self._drained_by = time.monotonic(), True, None
        if self.conn.their_state is h11.SEND_BODY and _is_chunked(self.headers):
            self.transport.close()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in our own words, if there is still an answer to give."""
        self.say(
            Refusal(400, "malformed_request", "this is not a request of HTTP/1.1, or its headers are too long")
        )

    def say(self, refusal: Refusal) -> None:
        """Send a refusal outside of any request, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reply = error_reply(refusal)
            headers = [*reply.raw_headers, *SAFE, NOT_KEPT, CLOSE]
            phrase = HTTPStatus(refusal.status).phrase.encode("ascii")
            events = (
                h11.Response(status_code=refusal.status, headers=headers, reason=phrase),
                h11.Data(data=bytes(reply.body)),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        if self.cycle is not None:
            self.cycle.disconnected = True  # whoever works on its request need not answer any more
            self.cycle.message_event.set()
        self.transport.close()

    def cut(self) -> None:
        """Close at once, whatever is under way."""
        self._connections.forget(self)
        self.transport.abort()

    def cut_if_overdue(self, now: float) -> str | None:
        """Close if the client let us wait for too long; why, or None. now: of the monotonic clock."""
        left = self.transport.get_write_buffer_size()
        if left:
            return self._cut_if_undrained(now, left)
        self._drained_by = None
        if self.transport.is_closing() or now < self.since + self._limits.header_seconds:
            return None
        if self.conn.their_state is h11.IDLE:
            return self._end_header()
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self.cut()  # the rest of a body whose request was answered already
            return "slow_body"
        return None

    def _cut_if_undrained(self, now: float, left: int) -> str | None:
        if self._drained_by is None:
            self._drained_by = now + self._limits.timeout_seconds + left / SLOWEST_BYTES_PER_SECOND
        if now < self._drained_by:
            return None
        self.cut()
        return "slow_reader"

    def _end_header(self) -> str:
        if not self.conn.trailing_data[0]:  # nothing was asked: browsers open connections beforehand
            self.transport.close()
            return "idle"
        seconds = f"{self._limits.header_seconds:g} s"
        self.say(Refusal(408, "slow_header", f"the headers of the request were not sent within {seconds}"))
        return "slow_header"


def _is_chunked(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" for name, _ in headers)


def room_for(connections: int, other_files: int, warn: Callable[[str], None]) -> int:
    """Raise the limit on open files for so many connections; how many there is room for, at least 1.

    other_files: that the process needs besides. warn: told if there is not enough room.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted, endless = connections + other_files, resource.RLIM_INFINITY
    if soft == endless or soft >= wanted:
        return connections
    possible = wanted if hard == endless else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    room = max(1, possible - other_files)
    if room < connections:
        warn(
            f"there is room for {room} connections, not {connections}: at most {hard} files can be open (ulimit -n)"
        )
    return room
