"""Sides that take turns: each in a process of its own, all started before the first lap and held to the last."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from pmd.benchmarks.edge.child import Answer, Request
from pmd.benchmarks.latency import summary_ms
from pmd.benchmarks.side_process import SideProcess

TURN = 50
"""Questions a side answers before the next one's turn: long enough to warm the caches again."""
WARMUP = 50


def rounds(request: Request) -> Answer:
    """Latency of every side on the same questions, the sides in turn and who begins changing every round.

    request: `sides`, name -> request of `sides.take_turns`; `questions`, how many; `compare`, of how many the ten
    best are compared with the first side's. Environment, and with it the pinned threads, is what the sides inherit.
    """
    names = list(request["sides"])
    with ExitStack() as stack:
        sides = {name: stack.enter_context(_started(request["sides"][name])) for name in names}
        turns: dict[str, list[Answer]] = {name: [] for name in names}
        for side in sides.values():
            _ask(side, {"first": 0, "last": min(WARMUP, request["questions"])})
        for number, first in enumerate(range(0, request["questions"], TURN)):
            last = min(first + TURN, request["questions"])
            start = number % len(names)
            for name in names[start:] + names[:start]:
                turns[name].append(_ask(sides[name], {"first": first, "last": last}))
        tops = {name: _ask(side, {"top": request["compare"]})["top"] for name, side in sides.items()}
    return {
        "rounds": len(turns[names[0]]),
        "sides": {name: _figures(turns[name]) for name in names},
        "shared_top": {name: _shared(tops[names[0]], tops[name]) for name in names[1:]},
    }


@contextmanager
def _started(request: Mapping[str, Any]) -> Iterator[SideProcess]:
    """The process of a side, loaded and ready; closing its stdin ends it."""
    command = [sys.executable, "-m", "pmd.benchmarks.edge.child", json.dumps({**request, "task": "side"})]
    with SideProcess(command) as side:
        side.answer()
        yield side


def _ask(side: SideProcess, order: Mapping[str, int]) -> Answer:
    return side.ask(order)


def _figures(turns: list[Answer]) -> Answer:
    """`cpu_ms` is the mean processor time of a question, which others that share the core do not lengthen."""
    laps = np.concatenate([np.array(turn["laps_ns"], np.int64) for turn in turns])
    cpu_ns = sum(turn["cpu_ns"] for turn in turns)
    return {
        "query_ms": summary_ms(laps),
        "cpu_ms": cpu_ns / len(laps) / 1e6,
        "cores_busy": cpu_ns / sum(turn["wall_ns"] for turn in turns),
    }


def _shared(ours: list[list[str]], theirs: list[list[str]]) -> float | None:
    """The mean share of a side's ten best that the first side has among its own; None where none were asked for."""
    shares = [len(set(one) & set(other)) / len(one) for one, other in zip(ours, theirs, strict=True)]
    return float(np.mean(shares)) if shares else None
