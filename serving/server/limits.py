"""What one server accepts, and how long it tries."""

from __future__ import annotations

from dataclasses import dataclass

MAX_AMONG = 10_000
MAX_COMPLETIONS = 100
MAX_COMPLETION_CHARACTERS = 200
MAX_EXPLAINED_TRIPLES = 50


@dataclass(frozen=True)
class Limits:
    """Bounds of a request and of the queue; each is at least 1. The HTTP documentation states them."""

    max_body_bytes: int = 1_048_576
    max_batch: int = 64
    """Questions of a request."""
    max_k: int = 1000
    max_text_characters: int = 10_000
    max_waiting: int = 256
    """Requests that may wait for one bundle, besides those being answered."""
    timeout_seconds: float = 30.0
    """For reading the body, and again for waiting and answering."""
    max_connections: int = 1000
    """Open at once; beyond them, those whose clients let the server wait the longest are closed."""
    header_seconds: float = 10.0
    """From a connection's beginning, or its last answer, to the last header of its next request."""
