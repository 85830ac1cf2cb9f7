"""Wall times of a call: warm-up first, a fence around just the work, percentiles rather than a lone mean."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Laps: TypeAlias = NDArray[np.int64]
PERCENTILES = (50, 95, 99)
Interval: TypeAlias = list[float | None]
"""Low and high end of a 95 % interval; None where the laps are too few to tell that end."""
NORMAL_95 = 1.96

WARM_BLOCK, WARM_BLOCKS, WARM_PERCENT, WARM_SECONDS = 25, 20, 5.0, 3.0
"""Warm is when a block of questions takes, by its median, within 5 % of what it took the time before."""
WANTED_PERCENT = 2.0
"""Repeats go on until p50 is known, with 95 % confidence, to within this much of itself on either side."""
PASSES = 10
BETWEEN = 10
"""Questions between two looks at the machine."""


class WarmUp(NamedTuple):
    """calls: untimed calls made. stable: whether the last two blocks took the same, or the warm-up was cut off."""

    calls: int
    stable: bool


class Repeats(NamedTuple):
    """laps: ns, int64 (N,), whole passes. half_width_percent: of p50's 95 % interval; None for too few laps."""

    laps: Laps
    passes: int
    half_width_percent: float | None

    @property
    def reached(self) -> bool:
        """Whether p50 is known as well as wanted."""
        return self.half_width_percent is not None and self.half_width_percent <= WANTED_PERCENT


def laps_ns(call: Callable[[Item], object], items: Sequence[Item], *, warmup: int) -> Laps:
    """Nanoseconds of `call(item)` for every item, int64 (N,), after `warmup` untimed calls.

    The warm-up pays for memory arenas, thread pools and lazily read pages; it walks over the items from the
    start, and round again where it is longer than they are.
    """
    for index in range(warmup):
        call(items[index % len(items)])
    return _laps(call, items, time.perf_counter_ns)


def warm_up(
    call: Callable[[Item], object], items: Sequence[Item], *, clock: Callable[[], int] = time.perf_counter_ns
) -> WarmUp:
    """Call with the first 25 items, again and again, until two rounds running take the same.

    The same items, so that rounds compare: the medians of two rounds lie within 5 % of each other. Given up as not
    stable after 20 rounds, or 3 seconds.
    """
    block, begin, before = items[:WARM_BLOCK], clock(), None
    for done in range(1, WARM_BLOCKS + 1):
        median = float(np.median(_laps(call, block, clock)))
        if before is not None and abs(median - before) <= before * WARM_PERCENT / 100:
            return WarmUp(done * len(block), True)
        if clock() - begin > WARM_SECONDS * 1e9:
            break
        before = median
    return WarmUp(done * len(block), False)


def laps_until(
    call: Callable[[Item], object],
    items: Sequence[Item],
    *,
    limit_s: float,
    between: Callable[[], object] = lambda: None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Repeats:
    """Nanoseconds of passes over all items until p50 is known to within 2 %, so that every item weighs the same.

    No pass begins that would likely end after `limit_s` seconds, but the first, nor an eleventh. between: called
    after every ten items; one untimed call follows it, which brings back what it pushed out of the caches.
    """
    begin, laps = clock(), np.empty(0, np.int64)
    for done in range(1, PASSES + 1):
        laps = np.concatenate([laps, _pass(call, items, between, clock)])
        found = Repeats(laps, done, half_width_percent(laps))
        if found.reached or (clock() - begin) * (done + 1) / done > limit_s * 1e9:
            break
    return found


def half_width_percent(laps: Laps) -> float | None:
    """Half the 95 % interval of p50 of laps in ns (N,), in percent of it; None where they are too few to tell."""
    (low, high), middle = intervals_ms(laps)["p50"], float(np.median(laps)) / 1e6
    if low is None or high is None or middle == 0:  # a clock may be too coarse for a lap
        return None
    return 100 * (high - low) / 2 / middle


def _pass(
    call: Callable[[Item], object],
    items: Sequence[Item],
    between: Callable[[], object],
    clock: Callable[[], int],
) -> Laps:
    parts = []
    for first in range(0, len(items), BETWEEN):
        part = items[first : first + BETWEEN]
        parts.append(_laps(call, part, clock))
        between()
        call(part[-1])
    return np.concatenate(parts)


def _laps(call: Callable[[Item], object], items: Sequence[Item], clock: Callable[[], int]) -> Laps:
    laps = np.empty(len(items), dtype=np.int64)
    for index, item in enumerate(items):
        start = clock()
        call(item)
        laps[index] = clock() - start
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
