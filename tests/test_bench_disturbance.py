"""When a row says that the machine was disturbed."""

from __future__ import annotations

import numpy as np
import pytest

from pmd.benchmarks.disturbance import Beats, judged

STEADY = np.full(100, 250_000) + np.arange(100) * 100  # 4 % from end to end


def slow(share: float, times: float) -> np.ndarray:
    """Steady pieces, a share of which took so many times as long."""
    wall = STEADY.copy()
    wall[: int(share * 100)] = wall[: int(share * 100)] * times
    return wall


def test_a_steady_machine_is_not_disturbed():
    found = judged(STEADY, STEADY, 0.99, threads=1)
    assert found["disturbed"] is False
    assert found["disturbance"]["beats"] == 100
    assert 2 < found["disturbance"]["spread_percent"] < 4
    assert found["disturbance"]["cores_busy"] == 1.0


@pytest.mark.parametrize(("share", "times", "disturbed"), [(0.05, 3, False), (0.2, 1.05, False), (0.2, 1.3, True)])
def test_a_few_slow_pieces_are_let_pass_and_a_fifth_is_not(share, times, disturbed):
    wall = slow(share, times)
    assert judged(wall, wall, 0.99, threads=1)["disturbed"] is disturbed


def test_a_core_that_is_shared_disturbs_whatever_the_spread():
    assert judged(STEADY, STEADY * 0.6, 0.99, threads=1)["disturbed"] is True
    assert judged(STEADY, STEADY, 0.6, threads=1)["disturbed"] is True


def test_with_several_threads_the_questions_processor_time_says_nothing():
    """Threads that wait for each other are not busy, though nobody is in their way."""
    assert judged(STEADY, STEADY, 0.6, threads=2)["disturbed"] is False


def test_beats_do_the_same_every_time_and_tell_their_times():
    beats = Beats()
    for _ in range(30):
        beats()
    found = beats.figures(0.99, 1)
    assert found["disturbance"]["beats"] == 30
    assert found["disturbance"]["spread_percent"] >= 0
    assert found["disturbance"]["cores_busy"] > 0
