"""Who may ask and who may change: bearer keys, compared in constant time."""

from __future__ import annotations

import hmac
from typing import NamedTuple

from starlette.datastructures import Headers

from pmd.serving.server.refusals import Refusal

SCHEME = b"bearer"
CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Keys(NamedTuple):
    """The keys of one server. The admin key opens what the question key opens, and changes besides."""

    question: bytes | None = None
    """None: everyone may ask."""
    admin: bytes | None = None
    """None: nobody may change anything."""

    def check_question(self, headers: Headers) -> None:
        """Raise Refusal (401) unless whoever sends these headers may ask."""
        if self.question is None:
            return
        given = _given(headers)
        if not (_same(given, self.question) | _same(given, self.admin)):
            raise Refusal(401, "wrong_key", "give the server's key as 'Authorization: Bearer KEY'", CHALLENGE)

    def check_admin(self, headers: Headers) -> None:
        """Raise Refusal unless whoever sends these headers may change bundles: 401, or 403 for the question key."""
        given = _given(headers)
        if _same(given, self.admin):
            return
        if _same(given, self.question):
            raise Refusal(403, "not_admin", "this key may ask, not change; give the server's admin key")
        raise Refusal(401, "wrong_key", "give the admin key as 'Authorization: Bearer KEY'", CHALLENGE)


def _given(headers: Headers) -> bytes | None:
    scheme, _, key = headers.get("authorization", "").encode("latin-1").partition(b" ")
    return key.strip() if scheme.lower() == SCHEME else None


def _same(given: bytes | None, expected: bytes | None) -> bool:
    return given is not None and expected is not None and hmac.compare_digest(given, expected)
