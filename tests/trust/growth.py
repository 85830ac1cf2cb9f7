"""Whether a process grows: samples of its memory, files, threads and answers, and the rules they are judged by."""

from __future__ import annotations

import statistics
import time

import numpy as np

from tests.trust.attack import Tally

WARMUP_SHARE = 0.2  # of the run, not judged: arenas, threads and the first thousand changes settle
BLOCKS = 20  # medians of as many parts of the run: reloads hold two bundles for a moment, and seconds are not alone
GROWTH_MIB_PER_10_MINUTES = 1.0  # the least slope that is called growth
GROWTH_MIB = 4.0  # and the least in all: a run of a minute sees the allocator settle
MORE_FILES, MORE_THREADS, MORE_MAPPINGS = 4, 2, 40
SLOWER_TIMES, SLOWER_SECONDS = 2.0, 0.05  # how much the last third's p99 may be above the first one's
STUDENT_95 = 2.10  # of 18 degrees of freedom


class Samples:
    """What was seen of a process during a run of so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._warmup = WARMUP_SHARE * seconds
        self._times: list[float] = []
        self._resources: list[dict[str, int]] = []
        self._answers: list[tuple[float, float]] = []

    def took(self, resources: dict[str, int]) -> None:
        """Keep what the process holds now; see `Served.resources`."""
        self._times.append(time.monotonic() - self._began)
        self._resources.append(resources)

    def answered(self, seconds: float) -> None:
        """Keep how long an answer took."""
        self._answers.append((time.monotonic() - self._began, seconds))

    def judge(self, tally: Tally) -> None:
        """Put the figures into a tally, and a failure for everything that grew."""
        warm = np.array(self._times) > self._warmup
        seconds = np.array(self._times)[warm]
        rss = np.array([each["rss_bytes"] for each in self._resources])[warm] / 2**20
        slope, margin = slope_of(seconds / 600, rss)
        tally.figures |= {
            "rss_mib": round(float(np.median(rss)), 1),
            "rss_slope_mib_per_10_min": round(slope, 2),
            "rss_slope_95_margin": round(margin, 2),
        }
        minutes = (seconds[-1] - seconds[0]) / 60
        if slope - margin > max(GROWTH_MIB_PER_10_MINUTES, GROWTH_MIB * 10 / minutes):
            tally.failed(f"memory grows by {slope:.2f} ± {margin:.2f} MiB in 10 minutes")
        for name, most in (("files", MORE_FILES), ("threads", MORE_THREADS), ("mappings", MORE_MAPPINGS)):
            first, last = _thirds(
                [each[name] for each, is_warm in zip(self._resources, warm, strict=True) if is_warm]
            )
            tally.figures |= {f"{name}_first_third": first, f"{name}_last_third": last}
            if last > first + most:
                tally.failed(f"{name} grew from {first} to {last}")
        self._judge_answers(tally)

    def _judge_answers(self, tally: Tally) -> None:
        laps = [seconds for at, seconds in self._answers if at > self._warmup]
        third = len(laps) // 3
        first, last = p99_of(laps[:third]), p99_of(laps[-third:])
        tally.figures |= {
            "p50_ms": round(1000 * statistics.median(laps), 2),
            "p99_first_third_ms": round(1000 * first, 1),
            "p99_last_third_ms": round(1000 * last, 1),
        }
        if last > SLOWER_TIMES * first + SLOWER_SECONDS:
            tally.failed(f"p99 went from {1000 * first:.1f} to {1000 * last:.1f} ms")


def slope_of(at: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of a line through the medians of BLOCKS parts of (N,), (N,) values, and half its 95 % interval."""
    parts = [part for part in np.array_split(np.arange(len(at)), BLOCKS) if len(part)]
    x, y = (np.array([np.median(row[part]) for part in parts]) for row in (at, values))
    x = x - x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    left = y - y.mean() - slope * x
    return slope, STUDENT_95 * float(np.sqrt((left * left).sum() / (len(x) - 2) / (x * x).sum()))


def p99_of(seconds: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(seconds, n=100)[98]


def _thirds(values: list[int]) -> tuple[int, int]:
    """Medians of the first and of the last third."""
    third = max(1, len(values) // 3)
    return int(statistics.median(values[:third])), int(statistics.median(values[-third:]))
