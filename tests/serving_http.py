"""A running server for tests: the application in a thread, on a free port, and a Scorer that waits when told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
from starlette.applications import Starlette

from pmd.serving import Scorer
from pmd.serving.server.limits import Limits
from pmd.serving.server.process import bound_socket, server_of, url_of

PATIENCE = 60.0  # seconds before a test gives up; no test passes by waiting


@contextlib.contextmanager
def running(app: Starlette, limits: Limits | None = None) -> Iterator[str]:
    """The application on a free port of this machine, stopped at the end; its URL. limits: of connections."""
    with bound_socket("127.0.0.1", 0) as listener:
        listening = threading.Event()
        url, server = url_of(listener), server_of(app, limits or Limits(), listening.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert listening.wait(PATIENCE)
            yield url
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def client_of(app: Starlette, **options: Any) -> Iterator[httpx.Client]:
    """A client of the running application."""
    with running(app) as url, httpx.Client(base_url=url, timeout=PATIENCE, **options) as client:
        yield client


class GatedScorer:
    """A Scorer whose calls for tails are counted, and wait until `gate` is open."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.calls: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def top_tails(self, heads: list[str], relations: list[str], k: int, **how: Any) -> Any:
        if None not in map(self._scorer.find_entity, heads):  # a mistake is told without waiting
            self.calls.append(list(heads))
            self.entered.release()
            assert self.gate.wait(PATIENCE)
        return self._scorer.top_tails(heads, relations, k, **how)
