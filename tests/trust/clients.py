"""Clients that stall, drip, leave, never read, and come in thousands, beside clients that only want answers."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tests.trust.asking import Client, Served, served
from tests.trust.attack import Attack, Ground, Tally

AT_ONCE = 2000  # attackers
MAX_CONNECTIONS, HEADER_SECONDS, TIMEOUT_SECONDS = 500, 2, 8
GOOD_CLIENTS, THINKING_SECONDS, PATIENCE_SECONDS = 8, 0.01, 10.0
QUIET_SECONDS = 5.0  # of measuring without attackers, and the least of measuring with them
HELD_SECONDS = 90.0  # an attacker that is still connected then has won
ONE = "/v1/bundles/tiny"
QUESTION = {"head": "aspirin", "relation": "treats", "k": 5}
HEAD = f"POST {ONE}/tails HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n".encode()
BODY = b'{"head": "aspirin", "relation": "treats"}'
LARGE = b'{"head": [' + b", ".join([b'"aspirin"'] * 60) + b'], "relation": "treats", "exclude_known": false}'

LONG_PAGE = b"GET /openapi.json HTTP/1.1\r\nHost: here\r\n\r\n"

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Way = Callable[[Reader, Writer, random.Random], Awaitable[None]]


def _lengthy(length: int, body: bytes = b"") -> bytes:
    return HEAD + f"Content-Length: {length}\r\n\r\n".encode() + body


async def _dripped(writer: Writer, data: bytes, rng: random.Random) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(rng.uniform(0.02, 0.2))


async def silent(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Say nothing."""


async def half_header(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Stop within the headers."""
    writer.write(HEAD[: rng.randrange(1, len(HEAD))])


async def dripped_header(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Send headers without end, byte by byte."""
    await _dripped(writer, HEAD + b"X-More: 1\r\n" * 1000, rng)


async def half_body(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Stop within the body."""
    writer.write(_lengthy(len(BODY), BODY[: rng.randrange(len(BODY))]))


async def dripped_body(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Send a body without end, byte by byte, also after the answer that it came too slowly."""
    writer.write(_lengthy(100_000))
    await _dripped(writer, b" " * 100_000, rng)


async def chunks(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Send a body in chunks of a byte, as fast as it goes."""
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        writer.write(b"1\r\n \r\n" * 5000)
        await writer.drain()


async def leaving(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Ask, and be gone before the answer."""
    writer.write(_lengthy(len(BODY), BODY))
    await writer.drain()
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def not_reading(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Ask for much, again and again, and read nothing."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport as well
    asked = _lengthy(len(LARGE), LARGE) if rng.random() < 0.2 else LONG_PAGE
    for _ in range(300):
        writer.write(asked)
        await writer.drain()


async def nonsense(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Speak another language."""
    writer.write(rng.randbytes(rng.randrange(1, 3000)) + b"\r\n\r\n")


async def huge_header(reader: Reader, writer: Writer, rng: random.Random) -> None:
    """Send a header of a megabyte."""
    writer.write(HEAD + b"X-More: " + b"x" * 1_000_000)


WAYS: tuple[Way, ...] = (
    silent, half_header, dripped_header, half_body, dripped_body, chunks, leaving, not_reading, nonsense,
    huge_header,
)  # fmt: skip
MANY_OF = {silent: 6, half_header: 4, dripped_header: 3, half_body: 3}


def attack_with(port: int, count: int, seed: int) -> Counter[str]:
    """Make `count` connections, at most AT_ONCE open; how each ended. In a process of its own."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return asyncio.run(_attack(port, count, seed))


async def _attack(port: int, count: int, seed: int) -> Counter[str]:
    rng, ended, room = random.Random(seed), Counter[str](), asyncio.Semaphore(AT_ONCE)
    ways = [way for way in WAYS for _ in range(MANY_OF.get(way, 1))]

    async def one(way: Way, mine: random.Random) -> None:
        async with room:
            ended[f"{way.__name__.replace('_', ' ')}: {await _ending(port, way, mine)}"] += 1

    await asyncio.gather(*(one(rng.choice(ways), random.Random(rng.random())) for _ in range(count)))
    return ended


async def _ending(port: int, way: Way, rng: random.Random) -> str:
    """How a connection of an attacker ended."""
    try:
        reader, writer = await asyncio.wait_for(_connected(port), HELD_SECONDS)
    except (OSError, TimeoutError):
        return "not let in"
    try:
        async with asyncio.timeout(HELD_SECONDS):
            acting = asyncio.create_task(way(reader, writer, rng))
            try:
                if way is not_reading:
                    with contextlib.suppress(ConnectionError):
                        await acting
                    while not writer.transport.is_closing():
                        writer.write(b" ")
                        await asyncio.sleep(0.5)
                    return "closed"
                found = await reader.read(12)
                while found and await reader.read(65_536):
                    pass
            finally:
                acting.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await acting
        return f"answered {found[9:12].decode('latin-1')}" if found.startswith(b"HTTP/1.1 ") else "closed"
    except TimeoutError:
        return "held"
    except OSError:
        return "closed"
    finally:
        writer.transport.abort()


async def _connected(port: int) -> tuple[Reader, Writer]:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        return await asyncio.open_connection(sock=made)
    except BaseException:
        made.close()
        raise


async def good_clients(
    port: int, expected: Any, until: Callable[[], bool], tally: Tally
) -> tuple[list[float], int]:
    """Seconds of every answer to clients that ask, think, and ask again, until it is time; and their retries."""
    laps: list[float] = []

    async def one(number: int) -> int:
        client = Client(port, seconds=PATIENCE_SECONDS, keep=number % 4 > 0)
        while not until():
            started = time.perf_counter()
            try:
                status, answer = await client.ask("POST", f"{ONE}/tails", QUESTION)
            except (OSError, EOFError, TimeoutError) as error:
                tally.failed(f"a good client got {type(error).__name__}: {error}")
            else:
                laps.append(time.perf_counter() - started)
                if (status, answer) == (200, expected):
                    tally.saw("good client answered")
                else:
                    tally.failed(f"a good client got {status}: {answer}")
            await asyncio.sleep(THINKING_SECONDS)
        client.close()
        return client.retries

    return laps, sum(await asyncio.gather(*map(one, range(GOOD_CLIENTS))))


async def _measured(server: Served, ground: Ground, tally: Tally) -> None:
    first = Client(server.port, seconds=PATIENCE_SECONDS)
    _, expected = await first.ask("POST", f"{ONE}/tails", QUESTION)
    first.close()
    last = time.monotonic() + QUIET_SECONDS
    quiet, _ = await good_clients(server.port, expected, lambda: time.monotonic() > last, tally)
    before = server.resources()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        attacking = pool.submit(attack_with, server.port, ground.count, ground.seed)
        least = time.monotonic() + QUIET_SECONDS
        attacked, retries = await good_clients(
            server.port, expected, lambda: attacking.done() and time.monotonic() > least, tally
        )
        for ending, count in attacking.result().items():
            if ending.endswith(("held", "not let in")):
                tally.failed(f"{count} attackers, {ending}")
            else:
                tally.saw(ending, count)
    await asyncio.sleep(2 * HEADER_SECONDS)
    after = server.resources()
    if after["files"] > before["files"] + GOOD_CLIENTS:
        tally.failed(f"{after['files']} files stay open, there were {before['files']}")
    tally.figures |= {
        "quiet_p50_ms": _ms(quiet, 50),
        "quiet_p99_ms": _ms(quiet, 99),
        "attacked_p50_ms": _ms(attacked, 50),
        "attacked_p99_ms": _ms(attacked, 99),
        "attacked_max_ms": round(1000 * max(attacked), 1),
        "retries_of_good_clients": retries,
        "rss_growth_mib": round((after["rss_bytes"] - before["rss_bytes"]) / 2**20, 1),
    }


def _ms(seconds: list[float], percentile: int) -> float:
    return round(1000 * statistics.quantiles(seconds, n=100)[percentile - 1], 2)


def slow_clients(ground: Ground) -> Tally:
    """The attack: `count` connections that misuse the server, up to AT_ONCE at a time."""
    from tests.tiny_bundle import write_tiny_bundle

    tally = Tally()
    bundle = write_tiny_bundle(ground.folder / "tiny")
    limits = ("--max-connections", MAX_CONNECTIONS, "--header-seconds", HEADER_SECONDS)
    with served(ground.folder, bundle, *limits, "--timeout-seconds", TIMEOUT_SECONDS) as server:
        asyncio.run(_measured(server, ground, tally))
        code, seconds = server.stop(60)
        tally.figures["stop_seconds"] = round(seconds, 2)
        said = server.said.read_text(encoding="utf-8").splitlines()
        if code != 0 or len(said) > 2:
            tally.failed(f"exit code {code}, expected 0; it said {said[-3:]}")
    return tally


ATTACKS = (
    Attack(
        "slow-clients",
        "soak",
        "Connections that stall in headers or bodies, send byte by byte, leave midway, never read, or speak no "
        f"HTTP, {AT_ONCE:,} at once where {MAX_CONNECTIONS} are allowed: every answer to other clients is right "
        f"and comes within {PATIENCE_SECONDS:g} s, no attacker stays connected, the server stops at once.",
        slow_clients,
        quick=2000,
        full=20_000,
        limit_seconds=240,
        alone=True,
        skip=lambda: None if sys.platform == "linux" else "it reads /proc",
    ),
)
