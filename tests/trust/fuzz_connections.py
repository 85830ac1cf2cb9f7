"""Fuzzing of a listening server: bytes that are no HTTP, or HTTP with other lines, lengths and pieces."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
from functools import partial
from urllib.parse import urlsplit

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_engine import Broken, numbered
from tests.trust.fuzz_http import MAY_FAIL, PATIENCE_SECONDS, QUESTIONS, VALUES, an_app
from tests.trust.fuzz_mutation import ODD_BYTES, mutated


def raw_request(rng: random.Random) -> bytes:
    """Bytes to send to a server: a request with its lines and lengths changed, or none at all."""
    path, (method, question) = rng.choice(list(QUESTIONS.items()))
    body = json.dumps(question).encode()
    lines = [
        f"{method} {path} HTTP/1.1".encode(),
        b"Host: x",
        b"Content-Type: application/json",
        b"Authorization: Bearer a-key",
        rng.choice(
            (
                b"Content-Length: %d" % len(body),
                b"Transfer-Encoding: chunked",
                b"Content-Length: 5\r\nContent-Length: 6",
            )
        ),
    ]
    if b"chunked" in lines[-1]:
        body = b"%x\r\n%s\r\n%s\r\n\r\n" % (
            len(body),
            body,
            rng.choice((b"0", b"-1", b"zz", b"ffffffffffffffffff", b"")),
        )
    if rng.random() < 0.4:
        lines.insert(
            rng.randrange(len(lines) + 1),
            rng.choice(ODD_BYTES) * rng.choice((1, 40, 4000)) + b": " + rng.choice(VALUES),
        )
    if rng.random() < 0.3:
        lines[0] = rng.choice(
            (
                b"GET / HTTP/9.9",
                b"GET",
                b"",
                b"PRI * HTTP/2.0",
                b"GET http://[::1 HTTP/1.1",
                b"GET /%zz HTTP/1.1",
                b"CONNECT a:1 HTTP/1.1",
            )
        )
    data = rng.choice((b"\r\n", b"\r\n", b"\n")).join(lines) + b"\r\n\r\n" + body
    data = mutated(rng, data) if rng.random() < 0.5 else data
    return data * rng.choice((1, 1, 1, 2, 5))


def _spoken(address: tuple[str, int], data: bytes, rng: random.Random) -> str:
    """Send bytes, take what comes; what the server said, in words. Raises Broken."""
    with socket.create_connection(address, timeout=PATIENCE_SECONDS) as client:
        with contextlib.suppress(OSError):  # the server may close before all is sent
            cut = rng.randrange(len(data) + 1)
            for part in (data[:cut], data[cut:]):
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                said += part
    if not said:
        return "closed without a word"
    status = said[9:12]
    if not said.startswith(b"HTTP/1.1 ") or not status.isdigit():
        raise Broken(f"said {said[:80]!r}")
    if int(status) >= 500 and int(status) not in MAY_FAIL:
        raise Broken(f"said {said[:200]!r}")
    if b"Traceback" in said:
        raise Broken(f"said {said[-300:]!r}")
    return f"status {status.decode()}"


def _raw(ground: Ground) -> Tally:
    from tests.serving_http import running

    tally = Tally()
    logging.getLogger("pmd.serving.server").setLevel(logging.CRITICAL)
    good = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with running(an_app(ground.folder)) as url:
        address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        for number in range(ground.count):
            rng = random.Random(f"{ground.seed}/{number}")
            numbered(tally, partial(_spoken, address, raw_request(rng), rng), ground, number)
            if number % 50 == 0 and _spoken(address, good, rng) != "status 200":
                tally.failed(f"after request {number} of seed {ground.seed} the server no longer answers others")
    return tally


ATTACKS = (
    Attack(
        "fuzz-connections",
        "fuzzing",
        "Bytes that are no HTTP, to a listening server: a status below 500 or a closed connection, others served",
        _raw,
        quick=800,
        full=15_000,
    ),
)
