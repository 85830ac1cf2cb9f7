"""Peak memory of a process that answers, and whether it stays where it is over many questions of mixed lengths."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pmd.benchmarks.edge.child import Answer, Request
from pmd.benchmarks.errors import MeasureError
from pmd.benchmarks.memory import peak_rss_bytes
from pmd.benchmarks.questions import TOP, Question
from pmd.serving.bundle import ENTITIES
from pmd.serving.scorer import Scorer

SAMPLES = 100
WORDS = 60
WORD_BYTES = 1 << 20
"""How much of entities.tsv words are taken from."""
MIB = 2.0**20
STATUS = Path("/proc/self/status")


def measure_memory(request: Request) -> Answer:
    """Peak after the questions of the file `questions`, then memory over `texts` questions of 1 to 60 words.

    Questions of the second kind are texts of random words of the graph, asked in both directions; memory is sampled
    100 times on the way. `first` is the second sample, so that what is built up once does not count.
    """
    scorer = Scorer.load(request["bundle"], threads=1, cached_queries=0)
    loaded = resident_bytes()
    rows = json.loads(Path(request["questions"]).read_text(encoding="utf-8"))
    for row in rows:
        Question(**row["question"]).ask(scorer)
    answered, peak = resident_bytes(), peak_rss_bytes()
    every = max(1, request["texts"] // SAMPLES)
    samples = [resident_bytes() for _ in _answered(scorer, every * SAMPLES, every)]
    return {
        "peak_rss_mib": None if peak is None else peak / MIB,
        "loaded_mib": loaded / MIB,
        "answered_mib": answered / MIB,
        "questions": len(rows),
        "texts": every * SAMPLES,
        "sampled_every": every,
        "samples_mib": [size / MIB for size in samples],
        **drift([size / MIB for size in samples], every),
    }


def drift(samples: Sequence[float], every: int) -> dict[str, float]:
    """Samples in MiB from the second on: first, last, lowest, highest, and slope in MiB per 10,000 questions.

    every: questions between two samples; at least three samples.
    """
    kept = np.array(samples[1:])
    slope = np.polyfit(np.arange(len(kept)) * every / 10_000, kept, 1)[0]
    return {
        "first_mib": float(kept[0]),
        "last_mib": float(kept[-1]),
        "min_mib": float(kept.min()),
        "max_mib": float(kept.max()),
        "slope_mib_per_10000": float(slope),
    }


def resident_bytes(status: Path = STATUS) -> int:
    """Resident set of this process now. Raises MeasureError where the system keeps no such file."""
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MeasureError(f"memory is read from {STATUS}, which this system lacks; leave out memory") from error
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _answered(scorer: Scorer, count: int, every: int) -> Iterator[int]:
    """Answer `count` random texts; yields after each `every` of them."""
    rng = np.random.default_rng(0)
    data = scorer.bundle.source.mapped(ENTITIES)[:WORD_BYTES].tobytes()
    words = sorted(set(data.decode("utf-8", errors="ignore").split()))
    relations = scorer.relation_ids
    for number in range(1, count + 1):
        text = " ".join(words[place] for place in rng.integers(len(words), size=rng.integers(1, WORDS + 1)))
        relation = relations[int(rng.integers(len(relations)))]
        if number % 2:
            scorer.top_tails(text, relation, k=TOP, head_is_text=True)
        else:
            scorer.top_heads(relation, text, k=TOP, tail_is_text=True)
        if number % every == 0:
            yield number
