"""Whether the machine was disturbed while a bundle was timed: a fixed piece of work between its questions.

The piece reads 1 MiB over and over, a quarter of a millisecond in all, so it feels a core that others take, a clock
that changes, and neighbours in the shared cache. It always does the same; where it took different times, so did
the questions for reasons that are not theirs.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

READ_BYTES, READS = 1 << 20, 8
SPREAD_PERCENT = 10.0
"""A quiet machine repeats the piece within this much, slowest tenth against fastest tenth left out."""
LEAST_BUSY = 0.95
"""Share of its core that work on one thread gets where nobody else wants it."""


class Beats:
    """Does the piece of work at each call, and keeps wall and processor time of each."""

    def __init__(self) -> None:
        self._read = np.ones(READ_BYTES // 8)
        self._wall_ns: list[int] = []
        self._cpu_ns: list[int] = []

    def __call__(self) -> None:
        """One more."""
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        for _ in range(READS):
            self._read.sum()
        self._wall_ns.append(time.perf_counter_ns() - wall)
        self._cpu_ns.append(time.thread_time_ns() - cpu)

    def figures(self, cores_busy: float, threads: int) -> dict[str, Any]:
        """`disturbed` and `disturbance` of a row; see `judged`."""
        return judged(np.array(self._wall_ns), np.array(self._cpu_ns), cores_busy, threads)


def judged(
    wall_ns: NDArray[np.int64], cpu_ns: NDArray[np.int64], cores_busy: float, threads: int
) -> dict[str, Any]:
    """Whether the machine was disturbed, and what says so.

    wall_ns, cpu_ns: of the pieces, (N,). cores_busy: processor time against wall time of the questions, which tells
    of their core where they ran on one thread. `spread_percent` is how much longer the piece took at its 90th
    percentile than at its 10th, `cores_busy` that of the pieces.
    """
    low, high = np.percentile(wall_ns, [10, 90])
    spread = 100 * (float(high / low) - 1)
    own = float(cpu_ns.sum() / wall_ns.sum())
    questions = cores_busy if threads == 1 else 1.0
    return {
        "disturbed": spread > SPREAD_PERCENT or own < LEAST_BUSY or questions < LEAST_BUSY,
        "disturbance": {"beats": len(wall_ns), "spread_percent": spread, "cores_busy": own},
    }
