"""One bundle behind the server: its Scorer, its queues, its changes and its completions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from pmd.serving.errors import QueryError, UnknownEntity, UnknownRelation
from pmd.serving.scorer import Scorer
from pmd.serving.server.batching import Batcher, Busy
from pmd.serving.server.calls import Explain, Options, Question, Top, call
from pmd.serving.server.changes import Change, Changer, Reload, Reopen, facts_of
from pmd.serving.server.completion import LiveCompletion
from pmd.serving.server.limits import Limits
from pmd.serving.server.metrics import Metrics
from pmd.serving.server.refusals import CLIENT_GONE, Refusal, unusable

logger = logging.getLogger(__name__)
Asked = TypeVar("Asked", bound=Hashable)
Part = TypeVar("Part")

RELOADS_AHEAD = 2  # one that runs, and one that sees what changed since it began
QUESTIONS_AT_ONCE = 8  # of one call: more together cost less each, and make the last of them wait longer

Gone: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""Returns when the client has closed the connection."""


class ServedBundle:
    """A bundle that answers requests. Questions wait in one queue; what is slow and rare waits in another.

    The other queue, with a thread of its own, takes explanations and keys that name no entity: the search for the
    nearest names takes a hundred times as long as an answer.
    """

    def __init__(
        self,
        name: str,
        scorer: Scorer,
        limits: Limits,
        metrics: Metrics,
        threads: int,
        reopen: Reopen | None = None,
    ) -> None:
        """name: as it stands in addresses. threads: calls of the Scorer at once, for questions.

        reopen: what opens the bundle afresh, if anything may.
        """
        self.name, self.scorer = name, scorer
        self._seconds = limits.timeout_seconds

        def count_batch(questions: int) -> None:
            metrics.questions.labels(name).inc(questions)
            metrics.batch_questions.labels(name).observe(questions)

        self._answers = Batcher(
            self._call,
            max_questions=min(limits.max_batch, QUESTIONS_AT_ONCE),
            max_waiting=limits.max_waiting,
            threads=threads,
            on_batch=count_batch,
        )
        self._aside = Batcher(
            self._call,
            max_questions=1,
            max_waiting=limits.max_waiting,
            on_batch=metrics.questions.labels(name).inc,
        )
        self._changer = Changer(self, reopen, limits, metrics)
        self._reloads: set[asyncio.Future[list[Any]]] = set()
        self._completion: LiveCompletion | None = None
        queues = (self._answers, self._aside, self._changer.queue)
        metrics.watch_waiting(name, lambda: sum(queue.waiting for queue in queues))
        metrics.watch_entities(name, lambda: self.scorer.num_entities)

    def about(self) -> dict[str, Any]:
        """What the bundle says of itself, JSON-ready."""
        manifest = self.scorer.bundle.manifest
        facts = {key: manifest[key] for key in ("dataset", "method", "grade", "precision", "encoder")}
        sizes = {"relations": self.scorer.num_relations, **facts_of(self.scorer)}
        return {"name": self.name, **facts, **sizes, "reranks": manifest["rerank"] is not None} | {
            "metrics": manifest["metrics"]
        }

    def relations(self) -> list[dict[str, str]]:
        """Id and text of every relation."""
        return [{"id": row.id, "text": row.text} for row in self.scorer.bundle.tables.relations]

    async def entities(self, query: str, limit: int) -> list[dict[str, str]]:
        """At most `limit` entities whose id or name begins with `query` or holds it."""
        found = await asyncio.to_thread(self._complete, query, limit)
        return [{"id": key, "name": name} for key, name in found]

    async def ask(self, options: Options, questions: Sequence[Question], gone: Gone) -> list[Any]:
        """An answer to each question. Raises Refusal: 422, 429, 504."""
        if isinstance(options, Explain):
            return await self._wait(self._aside, options, questions, gone)
        place = self._first_of_nobody(options, questions)
        if place is not None:  # an answer means that the entity was added meanwhile
            await self._wait(self._aside, options, [questions[place]], gone, place if len(questions) > 1 else None)
        return await self._wait(self._answers, options, questions, gone)

    async def change(self, change: Change, gone: Gone) -> dict[str, Any]:
        """What became of a change: the entity's id and `facts_of` the bundle; after a reload, `about`.

        A change that waits is not made if its client leaves or runs out of time first; one that was begun is made.
        Raises Refusal: 404, 409, 422, 429, 503, 504.
        """
        (answer,) = await self._wait(self._changer.queue, change, [None], gone)
        return self.about() if answer is None else answer

    def reload_soon(self) -> None:
        """Queue a reload for which nobody waits; the log says if it failed. Used from the event loop."""
        if len(self._reloads) == RELOADS_AHEAD:
            return
        with suppress(Busy):
            future = self._changer.queue.submit(Reload(), [None])
            self._reloads.add(future)
            future.add_done_callback(self._log_failure)

    def replace(self, scorer: Scorer) -> None:
        """Put questions to another Scorer from now on; those that run go on with the one they began with."""
        self.scorer = scorer
        self._completion = None

    def close(self) -> None:
        """Wait for running calls and let the threads go."""
        self._answers.close()
        self._aside.close()
        self._changer.close()

    def _call(self, options: Options, questions: Sequence[Question]) -> list[Any]:
        return call(self.scorer, options, questions)  # the one of now, which a reload may have put there

    def _complete(self, query: str, limit: int) -> list[tuple[str, str]]:
        state, found = self.scorer.snapshot, self._completion
        if found is None or found.state is not state:  # built on first use: nobody may ever type
            found = self._completion = LiveCompletion(state, found)
        return found.find(query, limit)

    def _log_failure(self, future: asyncio.Future[list[Any]]) -> None:
        self._reloads.discard(future)
        error = None if future.cancelled() else future.result()[0]
        if isinstance(error, Exception) and not isinstance(error, Refusal):  # a Refusal was logged where it arose
            logger.error("bundle %s is served as it was", self.name, exc_info=error)

    def _first_of_nobody(self, options: Options, questions: Sequence[Question]) -> int | None:
        """The first question with a key that names no entity; None if there is none."""
        if any(self.scorer.find_entity(key) is None for key in _candidates(options)):
            return 0
        for place, question in enumerate(questions):
            if any(self.scorer.find_entity(key) is None for key in _keys(options, question)):
                return place
        return None

    async def _wait(
        self,
        queue: Batcher[Asked, Part, Any],
        options: Asked,
        questions: Sequence[Part],
        gone: Gone,
        place: int | None = None,
    ) -> list[Any]:
        try:
            future = queue.submit(options, questions)
        except Busy as busy:
            raise Refusal(429, "busy", str(busy), {"Retry-After": str(busy.retry_seconds)}) from busy
        answers = await _settled(future, gone, self._seconds)
        counted = len(answers) > 1 or place is not None
        for index, answer in enumerate(answers):
            if isinstance(answer, QueryError | UnknownEntity | UnknownRelation):
                which = f"question {index if place is None else place}: " if counted else ""
                # Where the bundle lies is nothing to a client.
                raise unusable(which + str(answer).replace(str(self.scorer.bundle.path), f"bundle {self.name}"))
            if isinstance(answer, Exception):
                try:
                    raise answer
                finally:  # else it holds itself, by its traceback, and with itself a Scorer that was replaced
                    del answer, answers
        return answers


def _candidates(options: Options) -> tuple[str, ...]:
    return options.among or () if isinstance(options, Top) else ()


def _keys(options: Options, question: Question) -> tuple[str, ...]:
    """What of a question must name an entity."""
    if isinstance(options, Top):
        return () if options.is_text else question[:1]
    return question[0], question[2]


async def _settled(future: asyncio.Future[list[Any]], gone: Gone, seconds: float) -> list[Any]:
    """The result of `future`, which is cancelled if the client leaves or `seconds` pass first."""
    leaving = asyncio.create_task(gone())
    either: set[asyncio.Future[Any]] = {future, leaving}
    try:
        done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if future in done:
            return future.result()
        if leaving in done:
            raise Refusal(CLIENT_GONE, "client_gone", "the client closed the connection before the answer")
        raise Refusal(504, "timeout", f"no answer within {seconds:g} s; ask fewer questions at once, or later")
    finally:
        leaving.cancel()
        future.cancel()
