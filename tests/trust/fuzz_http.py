"""Fuzzing of the HTTP application: requests of odd methods, paths, headers, bodies and pieces."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_engine import Broken, numbered
from tests.trust.fuzz_mutation import ODD_TEXTS, mutated, mutated_tree, odd_value

if TYPE_CHECKING:
    from starlette.applications import Starlette

KEY, ADMIN_KEY = b"a-key", b"an-admin-key"
MAY_FAIL = {503, 504}
"""Statuses from 500 on that are stated: the server stops or is busy, and no answer in time."""
PATIENCE_SECONDS = 20.0
FRESH_AFTER = 2_000
"""Cases after which the changed graph is replaced."""
METHODS = ("GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "get", "X", "", "PO ST", "\xff")
PATHS = (
    *(
        "/",
        "/docs",
        "/health",
        "/ready",
        "/metrics",
        "/openapi.json",
        "/v1/bundles",
        "/static/page.js",
        "/static/..%2fapp.py",
    ),
    *(
        "/v1/bundles/tiny/relations",
        "/v1/bundles/tiny/entities",
        "/v1/bundles/no/tails",
        "/v1/bundles//tails",
        "//",
        "/x",
    ),
    *(
        "/v1/bundles/tiny/entities/aspirin",
        "/v1/bundles/tiny/entities/a/b",
        "/v1/bundles/tiny/entities/",
        "/v1/bundles/tiny/",
    ),
)
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/bundles/tiny/tails": (
        "POST",
        {"head": "aspirin", "relation": "treats", "k": 3, "among": ["pain", "fever"]},
    ),
    "/v1/bundles/tiny/heads": ("POST", {"tail": ["pain", "fever"], "relation": "treats", "tail_is_text": True}),
    "/v1/bundles/tiny/score": ("POST", {"triples": [["aspirin", "treats", "pain"], ["heart", "part_of", "body"]]}),
    "/v1/bundles/tiny/explain": ("POST", {"head": "aspirin", "relation": "treats", "tail": "pain", "asks": "head"}),
    "/v1/bundles/tiny/entities": (
        "POST",
        {"id": "new", "name": "new one", "description": "a drug", "vector": [0.5] * 16},
    ),
    "/v1/bundles/tiny/entities/heart": ("PATCH", {"name": "heart", "description": "an organ"}),
}
HEADERS = (b"content-type", b"content-length", b"content-encoding", b"authorization", b"host", b"accept", b"expect")
HEADERS += (
    b"transfer-encoding",
    b"x-forwarded-for",
    b"range",
    b"if-none-match",
    b"cookie",
    b"",
    b"a b",
    b"\xff",
    b"connection",
)
VALUES = (
    b"application/json",
    b"application/json; charset=utf-7",
    b"text/html",
    b"gzip",
    b"chunked",
    b"0",
    b"-1",
    b"9" * 30,
    b"",
)
VALUES += (
    b"Bearer a-key",
    b"Bearer",
    b"Basic eA==",
    b"\xff\xfe",
    b"a" * 3000,
    b"\xc2\xb2",
    b"*",
    b"100-continue",
    b"bytes=0-1",
)

Message = MutableMapping[str, Any]


def a_scope(rng: random.Random) -> tuple[dict[str, Any], list[bytes]]:
    """A request as ASGI has it, and the pieces of its body: half of them questions, changed a little."""
    path = rng.choice(list(QUESTIONS)) if rng.random() < 0.75 else rng.choice(PATHS)
    method, question = QUESTIONS.get(path, ("GET", {}))
    body = json.dumps(question).encode() if question else b""
    kind = rng.random()
    if question and kind < 0.55:
        body = _json(rng, question)
    elif kind < 0.7:
        body = mutated(rng, body)
    elif kind < 0.73:
        body = rng.choice((b"[" * 3000, b'{"a":' * 900, b"\xff" * 100, b"1e999", b"nul", b'"\\ud800"', b"x" * 5000))
    headers = [
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer " + rng.choice((KEY, ADMIN_KEY, ADMIN_KEY))),
    ]
    if rng.random() < 0.25:
        method = rng.choice(METHODS)
    if rng.random() < 0.2:
        headers = [header for header in headers if rng.random() < 0.6]
        headers += [(rng.choice(HEADERS), rng.choice(VALUES)) for _ in range(rng.randrange(4))]
    query = b""
    if rng.random() < 0.3:
        query = rng.choice(
            (
                b"query=as",
                b"query=&limit=5",
                b"limit=0",
                b"limit=\xc2\xb2",
                b"x=1",
                b"query=%ff",
                b"&&==",
                b"limit=" + b"9" * 5000,
            )
        )
        query = mutated(rng, query) if rng.random() < 0.5 else query
    if rng.random() < 0.15:
        path = (
            f"{path}/{rng.choice(ODD_TEXTS)}"
            if rng.random() < 0.5
            else path.replace("tiny", rng.choice(ODD_TEXTS), 1)
        )
    path = "".join(char for char in path if not 0xD800 <= ord(char) < 0xE000)  # decoded from UTF-8 by the server
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    return scope, _pieces(rng, body)


def _json(rng: random.Random, question: dict[str, Any]) -> bytes:
    changed = question
    if rng.random() < 0.8:
        changed = mutated_tree(rng, question)
    elif rng.random() < 0.5:
        changed = {key: odd_value(rng) for key in question}
    return json.dumps(changed, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")


def _pieces(rng: random.Random, body: bytes) -> list[bytes]:
    if rng.random() < 0.7:
        return [body]
    cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(6)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


async def answered(
    app: Callable[..., Awaitable[None]], scope: dict[str, Any], pieces: list[bytes], leaves: bool
) -> str:
    """Make the request; the outcome, in words. Raises Broken."""
    left, gone, sent = list(pieces), asyncio.Event(), list[Message]()

    async def receive() -> Message:
        if left and not (leaves and len(left) == 1):
            piece = left.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(left)}
        if leaves:
            return {"type": "http.disconnect"}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await app(scope, receive, send)
    return _judged(scope, sent)


def _judged(scope: dict[str, Any], sent: list[Message]) -> str:
    starts = [message for message in sent if message["type"] == "http.response.start"]
    if len(starts) != 1 or sent[0] is not starts[0] or sent[-1].get("more_body"):
        raise Broken(f"answered with {[message['type'] for message in sent]}")
    status, headers = starts[0]["status"], dict(starts[0]["headers"])
    body = b"".join(message.get("body", b"") for message in sent[1:])
    if status >= 500 and status not in MAY_FAIL:
        raise Broken(f"status {status}: {body[:200]!r}")
    if headers.get(b"x-content-type-options") != b"nosniff" or any(
        b"\n" in value or b"\r" in value for value in headers.values()
    ):
        raise Broken(f"status {status} with headers {headers}")
    if status >= 400:
        _check_error(status, headers, body)
    elif headers[b"content-type"].startswith(b"application/json") and scope["method"] != "HEAD":
        json.loads(body, parse_constant=_no_number)
    return f"status {status}"


def _check_error(status: int, headers: dict[bytes, bytes], body: bytes) -> None:
    if (
        b"Traceback" in body
        or b'File "' in body
        or not headers.get(b"content-type", b"").startswith(b"application/json")
    ):
        raise Broken(f"status {status} is told as {body[:200]!r}")
    error = json.loads(body)["error"]
    if (
        set(error) != {"code", "message"}
        or not error["message"]
        or "\n" in error["message"]
        or len(error["message"]) > 2000
    ):
        raise Broken(f"status {status} is told as {error!r}"[:400])


def _no_number(constant: str) -> None:
    raise Broken(f"JSON with {constant}")


def an_app(folder: Path) -> Starlette:
    """The application of a fresh tiny bundle, with small limits, both keys, changes and reloads."""
    from pmd.serving import Scorer
    from pmd.serving.server.app import create_app
    from pmd.serving.server.limits import Limits
    from tests.tiny_bundle import write_tiny_bundle

    bundle = folder / "tiny"
    if not bundle.exists():
        write_tiny_bundle(bundle)
    limits = Limits(max_body_bytes=4000, max_batch=8, max_k=50, max_text_characters=200, timeout_seconds=10.0)
    return create_app(
        {"tiny": Scorer.load(bundle, threads=1)}, limits=limits, api_key=KEY, admin_key=ADMIN_KEY,
        reopen=lambda name, journal: Scorer.load(bundle, threads=1, journal=journal),
    )  # fmt: skip


async def _requests(ground: Ground, tally: Tally) -> None:
    for first in range(0, ground.count, FRESH_AFTER):
        app = an_app(ground.folder)
        async with app.router.lifespan_context(app):
            for number in range(first, min(first + FRESH_AFTER, ground.count)):
                rng = random.Random(f"{ground.seed}/{number}")
                scope, pieces = a_scope(rng)
                try:
                    outcome: Any = await answered(app, scope, pieces, leaves=rng.random() < 0.02)
                except Exception as error:
                    outcome = error
                numbered(tally, partial(_given_back, outcome), ground, number)


def _given_back(outcome: Any) -> str:
    if isinstance(outcome, Exception):
        raise outcome
    return str(outcome)


def _http(ground: Ground) -> Tally:
    tally = Tally()
    logging.getLogger("pmd.serving.server").setLevel(logging.CRITICAL)
    asyncio.run(_requests(ground, tally))
    return tally


ATTACKS = (
    Attack(
        "fuzz-requests",
        "fuzzing",
        "Requests of odd methods, paths, headers and pieces: no 5xx but those stated, errors in their form",
        _http,
        quick=5_000,
        full=120_000,
    ),
)
