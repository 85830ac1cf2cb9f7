"""Wall times of a call: warm-up first, a fence around just the work, percentiles rather than a lone mean."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Laps: TypeAlias = NDArray[np.int64]
PERCENTILES = (50, 95, 99)
Interval: TypeAlias = list[float | None]
"""Low and high end of a 95 % interval; None where the laps are too few to tell that end."""
NORMAL_95 = 1.96


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


def intervals_ms(laps: Laps) -> dict[str, Interval]:
    """95 % intervals of p50, p95 and p99 of laps in ns (N,), in milliseconds, whatever their distribution.

    The ends are laps themselves: how many lie below a quantile is binomial, here with the normal approximation.
    Laps are taken as independent, so a machine that is slow for a while is not in them.
    """
    ordered, count = np.sort(laps) / 1e6, len(laps)
    found: dict[str, Interval] = {}
    for percentile in PERCENTILES:
        share = percentile / 100
        middle, spread = count * share, NORMAL_95 * math.sqrt(count * share * (1 - share))
        low, high = math.floor(middle - spread), math.ceil(middle + spread)
        found[f"p{percentile}"] = [
            float(ordered[low - 1]) if low >= 1 else None,
            float(ordered[high - 1]) if high <= count else None,
        ]
    return found


def rate_interval(laps: Laps, work: float) -> Interval:
    """95 % interval of `work` a second, from laps in ns (N,) that each did so much; unknown for a single lap."""
    if len(laps) < 2:
        return [None, None]
    mean = float(laps.mean())
    spread = NORMAL_95 * float(laps.std(ddof=1)) / math.sqrt(len(laps))
    slowest = work / (mean + spread) * 1e9
    return [slowest, work / (mean - spread) * 1e9 if mean > spread else None]
