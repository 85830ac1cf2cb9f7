"""How many times as long a peer takes, with an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pmd.benchmarks.latency import Interval, Laps

SAMPLES, SEED = 1000, 0


def ratio_of_medians(theirs: Sequence[Laps], ours: Sequence[Laps]) -> tuple[float, Interval]:
    """The ratio of the median laps, and its 95 % bootstrap interval over rounds.

    theirs, ours: laps of each round, int64 (N,). A sample draws rounds, each with both sides' laps: a machine that
    is slow for a while is slow for both. Unknown ends for a single round.
    """
    ratio = _ratio(theirs, ours)
    if len(ours) < 2:
        return ratio, [None, None]
    drawn = np.random.default_rng(SEED).integers(len(ours), size=(SAMPLES, len(ours)))
    samples = [_ratio([theirs[i] for i in rounds], [ours[i] for i in rounds]) for rounds in drawn.tolist()]
    low, high = np.percentile(samples, (2.5, 97.5))
    return ratio, [float(low), float(high)]


def _ratio(theirs: Sequence[Laps], ours: Sequence[Laps]) -> float:
    return float(np.median(np.concatenate(theirs)) / np.median(np.concatenate(ours)))
