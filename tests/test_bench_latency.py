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
from pmd.benchmarks.latency import intervals_ms, laps_ns, rate_interval, summary_ms
from pmd.benchmarks.memory import peak_rss_bytes
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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="getrusage is all there is without /proc")
def test_peak_memory_of_a_child_does_not_start_at_the_parents():
    code = "import json; from pmd.benchmarks.memory import peak_rss_bytes; print(json.dumps(peak_rss_bytes()))"
    ballast = np.ones(40_000_000)  # 320 MB, touched
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) < ballast.nbytes / 2
