"""Requests that wait for one bundle, answered together.

While calls run in the bundle's threads, requests queue up; the next call takes the oldest one and others that
ask in the same way: its thread's share of what waits, up to a number of questions. A thread that is free answers at
once: nothing waits for company.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, cast

from pmd.serving.errors import PmdError
from pmd.serving.server.refusals import Refusal

Options = TypeVar("Options", bound=Hashable)
Question = TypeVar("Question")
Answer = TypeVar("Answer")
Call: TypeAlias = Callable[[Options, Sequence[Question]], Sequence[Answer]]

LONGEST_RETRY_SECONDS = 60
SMOOTHING = 0.1  # share of the newest call in the running mean of seconds per request


class Busy(Exception):
    """The queue is full; `retry_seconds`, 1 to 60, is about how long it takes to empty it."""

    def __init__(self, waiting: int, retry_seconds: int) -> None:
        """waiting: requests in the queue."""
        super().__init__(f"{waiting} requests wait already; try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


@dataclass(eq=False)
class _Waiting(Generic[Options, Question, Answer]):
    options: Options
    questions: Sequence[Question]
    answers: asyncio.Future[list[Answer | Exception]]


class Batcher(Generic[Options, Question, Answer]):
    """Answers requests in threads of its own, each of which makes one call at a time. Used from one event loop.

    call(options, questions) gives an answer to each question. If it raises, it is called again with either half of
    the questions, so that only those fail that cannot be answered.
    """

    def __init__(
        self,
        call: Call[Options, Question, Answer],
        *,
        max_questions: int,
        max_waiting: int,
        threads: int = 1,
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> None:
        """max_questions: of a call, unless one request has more. on_batch: told the questions of each call."""
        self._call, self._max_questions, self._max_waiting = call, max_questions, max_waiting
        self._on_batch = on_batch
        self._queue: deque[_Waiting[Options, Question, Answer]] = deque()
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="pmd-serve")
        self._num_threads = threads
        self._workers: set[asyncio.Task[None]] = set()
        self._request_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Requests in the queue whose clients are still there."""
        return sum(not request.answers.done() for request in self._queue)

    def submit(self, options: Options, questions: Sequence[Question]) -> asyncio.Future[list[Answer | Exception]]:
        """Queue a request; its future gives an answer or an exception for each question. Raises Busy.

        Cancel the future to take the request out of the queue.
        """
        waiting = self.waiting
        if waiting >= self._max_waiting:
            seconds = math.ceil(waiting * self._request_seconds / self._num_threads)
            raise Busy(waiting, min(max(seconds, 1), LONGEST_RETRY_SECONDS))
        request = _Waiting(options, questions, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        if len(self._workers) < self._num_threads:
            self._workers.add(asyncio.create_task(self._work()))
        return request.answers

    def close(self) -> None:
        """Wait for the calls that are running, and let the threads go."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                questions = [question for request in batch for question in request.questions]
                started = time.perf_counter()
                self._on_batch(len(questions))
                answers = await loop.run_in_executor(self._threads, self._answers, batch[0].options, questions)
                self._measured((time.perf_counter() - started) / len(batch))
                _deliver(batch, answers)
        finally:  # at once: who is answered may ask again before a callback of the task could run
            self._workers.discard(cast(asyncio.Task[None], asyncio.current_task()))

    def _take(self) -> list[_Waiting[Options, Question, Answer]]:
        """The oldest request and all that can be answered with it, taken out of the queue; [] if nobody waits."""
        waiting = [request for request in self._queue if not request.answers.done()]
        self._queue.clear()
        taken: list[_Waiting[Options, Question, Answer]] = []
        # A fair share of what waits: else one thread takes it all, and the next requests wait for both.
        share = math.ceil(sum(len(request.questions) for request in waiting) / self._num_threads)
        room = min(self._max_questions, share)
        for request in waiting:
            fits = not taken or (request.options == taken[0].options and len(request.questions) <= room)
            if fits:
                taken.append(request)
                room -= len(request.questions)
            else:
                self._queue.append(request)
        return taken

    def _answers(self, options: Options, questions: Sequence[Question]) -> list[Answer | Exception]:
        try:
            return list(self._call(options, questions))
        except Exception as error:
            if len(questions) == 1:
                return [_bare(error)]
        half = len(questions) // 2
        return self._answers(options, questions[:half]) + self._answers(options, questions[half:])

    def _measured(self, seconds: float) -> None:
        mean = self._request_seconds or seconds
        self._request_seconds = mean + SMOOTHING * (seconds - mean)


def _bare(error: Exception) -> Exception:
    """A mistake of the client's without the frames it went through.

    The thread's frame holds the answers, and so the error itself: what the frames hold, as a Scorer that was
    replaced, would stay in memory until the cycle is collected.
    """
    link: BaseException | None = error if isinstance(error, PmdError | Refusal) else None
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _deliver(batch: list[_Waiting[Options, Question, Answer]], answers: list[Answer | Exception]) -> None:
    first = 0
    for request in batch:
        last = first + len(request.questions)
        if not request.answers.done():
            request.answers.set_result(answers[first:last])
        first = last
