"""Load on an HTTP server: clients that each ask, wait for the answer, and ask again on the same connection.

    measure("http://127.0.0.1:8000/v1/bundles/umls/tails", bodies, clients=32, seconds=10)

Requests are made up beforehand and of an answer only its status is looked at, so that the load costs little of the
machine it shares with the server.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.latency import summary_ms

END = b"\r\n\r\n"
LENGTH = b"content-length:"
MOST_HEADER_BYTES = 65_536


def measure(
    url: str,
    bodies: Sequence[bytes],
    clients: int,
    seconds: float,
    *,
    warmup_seconds: float = 1.0,
    api_key: str | None = None,
) -> dict[str, Any]:
    """Requests per second, and latency quantiles in ms, of `clients` connections that post JSON `bodies` in turn.

    Each client starts elsewhere in `bodies` and waits for every answer before the next request. What is answered in
    the first `warmup_seconds` is not counted. Raises BenchError if nothing was answered, or the server closed a
    connection.
    """
    requests = _requests(url, bodies, api_key)
    return asyncio.run(_measure(url, requests, clients, seconds, warmup_seconds))


def _requests(url: str, bodies: Sequence[bytes], api_key: str | None) -> list[bytes]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise BenchError(f"the load is put on http:// addresses, found {url!r}")
    head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    if api_key is not None:
        head += f"Authorization: Bearer {api_key}\r\n"
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body for body in bodies]


async def _measure(
    url: str, requests: Sequence[bytes], clients: int, seconds: float, warmup_seconds: float
) -> dict[str, Any]:
    parts = urlsplit(url)
    statuses: Counter[str] = Counter()
    laps_ns: list[int] = []
    first = time.perf_counter_ns() + int(warmup_seconds * 1e9)
    last = first + int(seconds * 1e9)

    async def client(mine: Iterator[bytes]) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=MOST_HEADER_BYTES)
        try:
            while (started := time.perf_counter_ns()) < last:
                writer.write(next(mine))
                status = await _answer(reader)
                ended = time.perf_counter_ns()
                if first <= ended <= last:
                    statuses[status] += 1
                    laps_ns.append(ended - started)
        finally:
            writer.close()

    starts = [index * len(requests) // clients for index in range(clients)]
    try:
        await asyncio.gather(*(client(itertools.cycle([*requests[at:], *requests[:at]])) for at in starts))
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise BenchError(f"{url} did not answer as HTTP/1.1 with a Content-Length: {error}") from error
    if not laps_ns:
        raise BenchError(f"{url} answered nothing within {warmup_seconds + seconds:g} s")
    laps = np.array(laps_ns, dtype=np.int64)
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": len(laps_ns),
        "requests_per_second": len(laps_ns) / seconds,
        "ms": {**summary_ms(laps), "max": float(laps.max() / 1e6)},
        "statuses": dict(statuses),
    }


async def _answer(reader: asyncio.StreamReader) -> str:
    """Read one answer; its status, "200" where all is well. Raises EOFError, ValueError."""
    head = await reader.readuntil(END)
    place = head.lower().find(LENGTH)
    if place < 0:
        raise ValueError("an answer without Content-Length")
    length = int(head[place + len(LENGTH) : head.index(b"\r\n", place)])
    await reader.readexactly(length)
    return head[9:12].decode("ascii")
