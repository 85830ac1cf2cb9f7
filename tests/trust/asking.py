"""A `pmd-serve` process under attack, and a client that keeps its connection and has some patience."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADMIN_KEY = "may-change"
START_SECONDS = 60.0
END = b"\r\n\r\n"


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    said: Path
    """What it writes to stderr."""

    def stop(self, seconds: float) -> tuple[int, float]:
        """Exit code after SIGTERM, and the seconds that took. Raises TimeoutExpired after `seconds`."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds), time.monotonic() - started

    def resources(self) -> dict[str, int]:
        """Resident bytes, open files, threads and mappings of the process now."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "rss_bytes": int(status["VmRSS"].split()[0]) * 1024,
            "files": len(os.listdir(proc / "fd")),
            "threads": int(status["Threads"]),
            "mappings": len((proc / "maps").read_bytes().splitlines()),
        }


@contextlib.contextmanager
def served(folder: Path, *args: object) -> Iterator[Served]:
    """`pmd-serve` with these arguments on a free port, with an admin key; killed at the end if it still runs."""
    said = folder / "server.stderr"
    command = [sys.executable, "-m", "pmd.serving.server.cli", "--port", "0", *map(str, args)]
    environment = {name: value for name, value in os.environ.items() if name != "PMD_API_KEY"}
    with open(said, "wb") as errors, open(folder / "server.stdout", "wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=errors, env=environment | {"PMD_ADMIN_KEY": ADMIN_KEY}
        )
    try:
        yield Served(process, _port(process, said), said)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes], said: Path) -> int:
    last = time.monotonic() + START_SECONDS
    while time.monotonic() < last and process.poll() is None:
        for line in said.read_text(encoding="utf-8").splitlines():
            if line.startswith("listening on http"):
                return int(line.rpartition(":")[2])
        time.sleep(0.02)
    raise RuntimeError(f"the server did not listen: {said.read_text(encoding='utf-8')[-500:]}")


class Client:
    """A connection that is kept, and made anew if the server closed it between two requests."""

    def __init__(self, port: int, *, seconds: float, admin: bool = False, keep: bool = True) -> None:
        """seconds: patience for one answer. keep: False for a connection for each request."""
        self._port, self._seconds, self._keep = port, seconds, keep
        self._headers = f"Authorization: Bearer {ADMIN_KEY}\r\n" if admin else ""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.retries = 0

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of the answer (or its text). Raises TimeoutError, OSError, EOFError."""
        data = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if body is not None else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: here\r\n{self._headers}{kind}Content-Length: {len(data)}\r\n\r\n"
        async with asyncio.timeout(self._seconds):
            status, content = await self._sent(head.encode("ascii") + data)
        return status, json.loads(content) if content.startswith(b"{") else content.decode()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _sent(self, request: bytes) -> tuple[int, bytes]:
        try:
            reused = self._streams is not None
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
            try:
                return await _exchanged(*self._streams, request)
            except (ConnectionError, EOFError):
                if not reused:
                    raise
            self.close()  # it was closed while nothing was under way: every client asks once more then
            self.retries += 1
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
            return await _exchanged(*self._streams, request)
        except BaseException:
            self.close()
            raise
        finally:
            if not self._keep:
                self.close()


async def _exchanged(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    writer.write(request)
    head = (await reader.readuntil(END)).decode("ascii").lower()
    length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
    return int(head[9:12]), await reader.readexactly(int(length.partition(":")[2]))
