"""A server of one file in several ways, each slow, in a process of its own: what `kill-download` fetches from."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE_BYTES = 4096
RANGES_SLOWER = 4  # so that most kills fall where the next request can go on


class SlowServer(ThreadingHTTPServer):
    """Serves `data` at /ranges, /chunked and /once (no ranges), in pieces with a wait between them."""

    daemon_threads = True

    def __init__(self, data: bytes, wait_seconds: float, log: Path) -> None:
        """log: gets a line for each request, the path and the first byte asked for."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.wait_seconds = data, wait_seconds
        self._log, self._writing = log, threading.Lock()

    def note(self, path: str, start: int) -> None:
        """Write down what was asked for."""
        with self._writing, open(self._log, "a", encoding="utf-8") as file:
            file.write(f"{path} {start}\n")


class _Handler(BaseHTTPRequestHandler):
    server: SlowServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        wish, data = self.headers.get("Range"), self.server.data
        start = int(wish.removeprefix("bytes=").rstrip("-")) if wish and self.path == "/ranges" else 0
        self.server.note(self.path, start)
        if start >= len(data):
            self._head(416, {"Content-Length": "0"})
            return
        part, chunked = data[start:], self.path == "/chunked"
        headers = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(part))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if start else 200, headers | {"Connection": "close"})
        with contextlib.suppress(OSError):  # the client was killed
            self._send(part, chunked)

    def _send(self, part: bytes, chunked: bool) -> None:
        for at in range(0, len(part), PIECE_BYTES):
            piece = part[at : at + PIECE_BYTES]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            time.sleep(self.server.wait_seconds * (RANGES_SLOWER if self.path == "/ranges" else 1))
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(data: bytes, wait_seconds: float, log: Path) -> Iterator[str]:
    """Serve from a forked process; yields the address without a path."""
    with SlowServer(data, wait_seconds, log) as server:
        pid = os.fork()
        if pid == 0:
            try:
                server.serve_forever(poll_interval=0.05)
            finally:
                os._exit(1)
        address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield address
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
