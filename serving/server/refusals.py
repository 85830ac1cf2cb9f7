"""What a client is told when its request is not answered: a status, a code for programs, a line for people."""

from __future__ import annotations

from collections.abc import Mapping

CLIENT_GONE = 499  # nobody reads it; the metrics show it


class Refusal(Exception):
    """A request that is not answered. headers: names and values to send with it."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """status: of HTTP, 400 to 599. code: one lower-case word or more. message: found, expected, what to do."""
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


def unusable(message: str) -> Refusal:
    """The refusal of a question that is well-formed JSON and cannot be answered (422)."""
    return Refusal(422, "unusable_question", message)
