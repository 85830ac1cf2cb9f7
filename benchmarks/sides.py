"""A side of a comparison, in its own process: told over stdin what to answer, it tells how long that took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TextIO, TypeAlias

from pmd.benchmarks.latency import laps_ns

Answer: TypeAlias = dict[str, Any]


class Side(NamedTuple):
    """ask: answer a question by its number, which is timed; top: ids of its ten best."""

    ask: Callable[[int], object]
    top: Callable[[int], list[str]]


def obey(side: Side, name: str, orders: Iterable[str], channel: TextIO) -> None:
    """Say that the side is ready, then obey lines of JSON until there are no more.

    An order is `first` and `last`, numbers of questions to time, or `top`, of how many questions to name the ten
    best. Each is answered by one line of JSON on `channel`.
    """
    _tell(channel, {"ready": name})
    for line in orders:
        order = json.loads(line)
        if "top" in order:
            _tell(channel, {"top": [side.top(number) for number in range(order["top"])]})
        else:
            _tell(channel, _timed(side, order["first"], order["last"]))


def _timed(side: Side, first: int, last: int) -> Answer:
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    laps = laps_ns(side.ask, range(first, last), warmup=0)
    return {
        "laps_ns": laps.tolist(),
        "cpu_ns": time.process_time_ns() - cpu,
        "wall_ns": time.perf_counter_ns() - wall,
    }


def _tell(channel: TextIO, answer: Answer) -> None:
    channel.write(json.dumps(answer, allow_nan=False) + "\n")
    channel.flush()
