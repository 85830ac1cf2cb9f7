"""What our Python costs: a whole call less the time spent inside onnxruntime."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pmd.benchmarks.edge.child import Answer, Request
from pmd.benchmarks.errors import MeasureError
from pmd.benchmarks.latency import laps_ns, summary_ms
from pmd.benchmarks.questions import Question
from pmd.serving.scorer import Scorer

WARMUP = 50
RUNS = ("run", "run_with_iobinding", "run_with_ort_values")


class Inside:
    """Time spent in onnxruntime's runs, in ns by the clock and of the thread, and how many there were.

    A run that calls another counts once.
    """

    def __init__(self) -> None:
        self.ns, self.cpu_ns, self.runs, self._depth = 0, 0, 0, 0

    @contextlib.contextmanager
    def watching(self, *owners: type) -> Iterator[None]:
        """Time the runs of every session of these classes, of those that exist already too."""
        found = [(owner, name, getattr(owner, name)) for owner in owners for name in RUNS if name in vars(owner)]
        for owner, name, run in found:
            setattr(owner, name, self._timed(run))
        try:
            yield
        finally:
            for owner, name, run in found:
                setattr(owner, name, run)

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def timed(*given: Any, **named: Any) -> Any:
            self._depth += 1
            start, cpu = time.perf_counter_ns(), time.thread_time_ns()
            try:
                return run(*given, **named)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.cpu_ns += time.thread_time_ns() - cpu
                    self.ns += time.perf_counter_ns() - start
                    self.runs += 1

        return timed


def measure_overhead(request: Request) -> Answer:
    """Milliseconds outside onnxruntime of each question of the file `questions`, and inside it.

    `outside_cpu_ms` is the same in processor time of the thread, which others on the core do not lengthen.
    request: `bundle`, `questions`. Raises MeasureError if no run was seen: then nothing was measured.
    """
    scorer = Scorer.load(request["bundle"], threads=1, cached_queries=0)
    rows = json.loads(Path(request["questions"]).read_text(encoding="utf-8"))
    asked = [Question(**row["question"]) for row in rows]
    laps_ns(lambda question: question.ask(scorer), asked[:WARMUP], warmup=0)
    inside, seen = Inside(), np.empty((len(asked), 4), np.int64)

    def ask(number: int) -> None:
        before, cpu = (inside.ns, inside.cpu_ns, inside.runs), time.thread_time_ns()
        asked[number].ask(scorer)
        seen[number, 3] = time.thread_time_ns() - cpu
        seen[number, :3] = np.array([inside.ns, inside.cpu_ns, inside.runs]) - before

    with inside.watching(*_session_classes()):
        whole = laps_ns(ask, range(len(asked)), warmup=0)
    spent, spent_cpu, runs, cpu = seen.T
    if not runs.all():
        raise MeasureError("a question was answered without any run of onnxruntime that could be timed")
    return {
        "whole_ms": summary_ms(whole),
        "inside_ms": summary_ms(spent),
        "outside_ms": summary_ms(whole - spent),
        "outside_cpu_ms": summary_ms(cpu - spent_cpu),
        "search": scorer.search,
        "runs_per_question": float(runs.mean()),
    }


def _session_classes() -> tuple[type, ...]:
    """The session class of onnxruntime, the classes it inherits its runs from, and the one of C++ below them."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    return *onnxruntime.InferenceSession.__mro__[:-1], native.InferenceSession
