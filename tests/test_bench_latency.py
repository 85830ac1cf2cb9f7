"""Timing and what is asked: percentiles, warm-up, the planted sleep, distinct questions in a batch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import TEST_TRIPLES, write_tiny_bundle

from pmd.benchmarks import questions
from pmd.benchmarks.errors import MeasureError
from pmd.benchmarks.latency import (
    half_width_percent,
    intervals_ms,
    laps_ns,
    laps_until,
    rate_interval,
    summary_ms,
    warm_up,
)
from pmd.benchmarks.memory import peak_rss_bytes, private_dirty_bytes
from pmd.serving import Scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    return Scorer.load(write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny"), threads=1)


def test_percentiles_of_known_laps():
    laps = np.arange(1, 101, dtype=np.int64) * 1_000_000  # 1 ms … 100 ms
    found = summary_ms(np.random.default_rng(0).permutation(laps))
    assert found == pytest.approx({"p50": 50.5, "p95": 95.05, "p99": 99.01, "mean": 50.5})


def test_a_single_lap_is_every_percentile():
    assert set(summary_ms(np.array([2_500_000])).values()) == {2.5}


def test_intervals_of_known_laps():
    """Of 1,000 laps the median's interval is laps 469 to 531, p95's 936 to 964, p99's 983 to 997."""
    laps = np.random.default_rng(0).permutation(np.arange(1, 1001, dtype=np.int64)) * 1_000_000
    assert intervals_ms(laps) == {"p50": [469.0, 531.0], "p95": [936.0, 964.0], "p99": [983.0, 997.0]}


def test_an_end_that_few_laps_cannot_tell_is_unknown():
    found = intervals_ms(np.arange(1, 21, dtype=np.int64) * 1_000_000)
    assert found["p50"] == [5.0, 15.0]
    assert found["p95"][1] is found["p99"][1] is None
    assert list(intervals_ms(np.array([2_500_000])).values()) == [[None, None]] * 3
    assert rate_interval(np.array([2_500_000]), 64) == [None, None]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    tries, truths = 400, {"p50": np.log(2), "p95": np.log(20)}  # quantiles of the exponential distribution
    held = dict.fromkeys((*truths, "rate"), 0)
    for _ in range(tries):
        laps = (rng.exponential(size=300) * 1e6).astype(np.int64)
        found = intervals_ms(laps)
        for name, truth in truths.items():
            low, high = found[name]
            held[name] += low <= truth <= high
        low, high = rate_interval(laps, 64)
        held["rate"] += low <= 64_000 <= high  # a lap of 1 ms on average
    assert all(0.92 <= count / tries <= 0.99 for count in held.values()), held


def test_warm_up_is_not_timed_and_goes_round():
    asked: list[int] = []
    laps = laps_ns(asked.append, [1, 2, 3], warmup=5)
    assert len(laps) == 3
    assert asked == [1, 2, 3, 1, 2, 1, 2, 3]


class Clock:
    """A clock that only calls move: the n-th call takes as long as `taking(n)` says, in ns."""

    def __init__(self, taking) -> None:
        self.now, self.asked, self._taking = 0, [], taking

    def __call__(self) -> int:
        return self.now

    def call(self, item: int) -> None:
        self.now += self._taking(len(self.asked))
        self.asked.append(item)


def test_the_warm_up_ends_when_the_same_questions_take_the_same():
    clock = Clock(lambda n: (10_000_000, 5_000_000, 4_800_000)[min(n // 25, 2)])
    assert warm_up(clock.call, list(range(100)), clock=clock) == (75, True)
    assert clock.asked == list(range(25)) * 3


def test_a_warm_up_that_gets_no_steadier_is_given_up():
    clock = Clock(lambda n: 1_000_000 if n // 25 % 2 else 2_000_000)
    assert warm_up(clock.call, list(range(30)), clock=clock) == (500, False)
    slow = Clock(lambda n: 100_000_000 if n // 25 % 2 else 200_000_000)  # 5 s, then 2.5 s
    assert warm_up(slow.call, list(range(30)), clock=slow) == (25, False)


def test_few_questions_warm_up_too():
    clock = Clock(lambda n: 1_000_000)
    assert warm_up(clock.call, [1, 2], clock=clock) == (4, True)


def test_steady_laps_need_one_pass():
    clock = Clock(lambda n: 1_000_000)
    found = laps_until(clock.call, list(range(100)), limit_s=60, clock=clock)
    assert (found.passes, len(found.laps), found.half_width_percent, found.reached) == (1, 100, 0.0, True)


def test_repeats_go_on_until_the_median_is_known_well_enough():
    rng = np.random.default_rng(0)
    clock = Clock(lambda n: int(rng.uniform(900_000, 1_100_000)))  # half width 9.8 % / sqrt(N): N = 96 for 1 %
    found = laps_until(clock.call, list(range(20)), limit_s=60, clock=clock)
    assert found.reached
    assert found.half_width_percent <= 2
    assert 1 < found.passes < 10
    assert len(found.laps) == 20 * found.passes
    assert half_width_percent(found.laps[:-20]) > 2  # the pass before was not enough


def test_repeats_end_with_the_time_and_with_ten_passes():
    def spread(n: int) -> int:
        return 1_000_000 * (1 + n % 10)

    clock = Clock(spread)
    found = laps_until(clock.call, list(range(20)), limit_s=0.5, clock=clock)  # a pass takes 0.12 s
    assert (found.passes, found.reached) == (4, False)
    assert clock.now <= 0.5e9
    late = Clock(spread)
    assert laps_until(late.call, list(range(20)), limit_s=0, clock=late).passes == 1
    endless = Clock(spread)
    assert laps_until(endless.call, list(range(20)), limit_s=1e9, clock=endless).passes == 10


def test_looking_at_the_machine_is_in_no_lap():
    clock, looked = Clock(lambda n: 1_000_000), []

    def look() -> None:
        looked.append(len(clock.asked))
        clock.now += 7_000_000

    found = laps_until(clock.call, list(range(25)), limit_s=0, between=look, clock=clock)
    assert set(found.laps) == {1_000_000}
    assert looked == [10, 21, 27]  # after ten questions, an untimed one between
    assert clock.asked == [*range(10), 9, *range(10, 20), 19, *range(20, 25), 24]


def test_half_width_of_known_laps():
    laps = np.arange(1, 1001, dtype=np.int64) * 1_000_000
    assert half_width_percent(laps) == pytest.approx(100 * 31 / 500.5)
    assert half_width_percent(laps[:1]) is None
    assert half_width_percent(0 * laps) is None  # a coarse clock


def test_a_planted_sleep_is_in_every_lap():
    laps = laps_ns(lambda _: time.sleep(0.003), range(5), warmup=0)
    assert laps.min() >= 3_000_000


def test_questions_are_real_and_the_same_every_time(scorer):
    asked = questions.of_split(scorer, "test", 40)
    assert asked == questions.of_split(scorer, "test", 40)
    distinct = set(asked)
    assert len(asked) == 40
    test = {(h, r, False) for h, r, _ in TEST_TRIPLES} | {(t, r, True) for _, r, t in TEST_TRIPLES}
    assert distinct == {questions.Question(*question) for question in test}


def test_a_question_gets_what_the_scorer_gives(scorer):
    tail = questions.Question("aspirin", "treats", False)
    head = questions.Question("body", "part_of", True)
    assert tail.ask(scorer) == scorer.top_tails("aspirin", "treats", k=10)
    assert head.ask(scorer) == scorer.top_heads("part_of", "body", k=10)
    assert "pain" not in {answer.entity for answer in tail.ask(scorer)}  # known already


def test_batches_are_of_one_direction_and_distinct(scorer):
    made = questions.batches(questions.of_split(scorer, "test", 200), 3, 4)
    assert [len(batch) for batch in made] == [3, 3, 3, 3]
    assert [batch[0].inverse for batch in made] == [False, True, False, True]
    assert all(len(set(batch)) == 3 for batch in made)
    for batch in made:
        together, apart = questions.ask_batch(scorer, batch), [question.ask(scorer) for question in batch]
        assert [[a.entity for a in answers] for answers in together] == [
            [a.entity for a in answers] for answers in apart
        ]


def test_a_split_without_triples_is_refused(scorer, monkeypatch):
    monkeypatch.setattr(type(scorer.known), "triples", lambda *_: np.zeros((0, 3), np.int64))
    with pytest.raises(MeasureError, match="holds no valid triples"):
        questions.of_split(scorer, "valid", 10)


def test_peak_memory_falls_back_where_there_is_no_proc(tmp_path):
    own = peak_rss_bytes()
    assert own is not None and own > 1_000_000
    assert peak_rss_bytes(tmp_path / "absent") is not None


def test_private_dirty_pages_are_those_of_the_system(tmp_path):
    rollup = tmp_path / "smaps_rollup"
    rollup.write_text("00-ff ---p 00000000 00:00 0 [rollup]\nRss: 900 kB\nPrivate_Dirty:      123 kB\n")
    assert private_dirty_bytes(rollup) == 123 * 1024
    assert private_dirty_bytes(tmp_path / "absent") is None


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells private pages")
def test_private_dirty_pages_hold_what_is_written_and_not_what_is_only_taken():
    before = private_dirty_bytes()
    ballast = np.empty(8_000_000)
    assert private_dirty_bytes() - before < 5_000_000
    ballast[:] = 1  # 64 MB
    assert 60_000_000 < private_dirty_bytes() - before < 70_000_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="getrusage is all there is without /proc")
def test_peak_memory_of_a_child_does_not_start_at_the_parents():
    code = "import json; from pmd.benchmarks.memory import peak_rss_bytes; print(json.dumps(peak_rss_bytes()))"
    ballast = np.ones(40_000_000)  # 320 MB, touched
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < ballast.nbytes / 2
