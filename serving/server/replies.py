"""Answers as they leave the server: JSON, errors, and headers that keep a browser in its place."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from pmd.serving.server.refusals import Refusal

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", POLICY.encode()),
]
NOT_KEPT = (b"cache-control", b"no-store")


def json_reply(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value` as pure ASCII JSON, so that any text in it can be sent; NaN and infinity are refused."""
    body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    return Response(body, status, headers, media_type="application/json")


def error_reply(refusal: Refusal) -> Response:
    """The answer that carries a refusal."""
    body = {"error": {"code": refusal.code, "message": " ".join(refusal.message.split())}}
    return json_reply(body, refusal.status, refusal.headers)
