"""Wall times of a call: warm-up first, a fence around just the work, percentiles rather than a lone mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Laps: TypeAlias = NDArray[np.int64]
PERCENTILES = (50, 95, 99)


def laps_ns(call: Callable[[Item], object], items: Sequence[Item], *, warmup: int) -> Laps:
    """Nanoseconds of `call(item)` for every item, int64 (N,), after `warmup` untimed calls.

    The warm-up pays for memory arenas, thread pools and lazily read pages; it walks over the items from the
    start, and round again where it is longer than they are.
    """
    for index in range(warmup):
        call(items[index % len(items)])
    laps = np.empty(len(items), dtype=np.int64)
    for index, item in enumerate(items):
        start = time.perf_counter_ns()
        call(item)
        laps[index] = time.perf_counter_ns() - start
    return laps


def summary_ms(laps: Laps) -> dict[str, float]:
    """p50, p95, p99 (linear between the two nearest laps) and mean of laps in ns (N,), in milliseconds."""
    percentiles = np.percentile(laps, PERCENTILES) / 1e6
    named = {f"p{p}": float(value) for p, value in zip(PERCENTILES, percentiles, strict=True)}
    return {**named, "mean": float(laps.mean() / 1e6)}
