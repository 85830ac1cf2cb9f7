"""The best bundle within a budget: many ways of making it are tried, the frontier is told, one is kept.

A way that does not pass its own gate is tried, told, and never kept.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pmd.export.errors import TargetError
from pmd.export.making import Making
from pmd.serving.known import SPLIT_NAMES, directed
from pmd.serving.scorer import Scorer

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "ms": 1, "%": 0.01}
BUDGET = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})")
QUESTIONS, WARM_UP = 200, 10


@dataclass(frozen=True)
class Tried:
    """A bundle that was made to be looked at. failure: the gate it missed, None if it passed."""

    stage: str
    making: Making
    folder: Path
    size_bytes: int
    query_ms: float
    """Median time of one question, one thread: text to ten answers."""
    mrr: float
    """On the split that bundles are compared on."""
    failure: str | None = None

    def dominates(self, other: Tried) -> bool:
        """Whether it is nowhere worse than the other and somewhere better."""
        ours, theirs = ((t.size_bytes, t.query_ms, -t.mrr) for t in (self, other))
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


class Budget(NamedTuple):
    """One bound: bytes at most, milliseconds a question at most, or a share of the model's MRR at least."""

    measure: str
    bound: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Of 10MB, 2.5ms or 99%. Raises TargetError for anything else."""
        found = BUDGET.fullmatch(text.strip())
        if found is None:
            raise TargetError(
                f"--auto {text!r} is no budget; say a size (10MB), a time (2ms) or a share of MRR (99%)"
            )
        value = float(found[1]) * UNITS[found[2]]
        return cls({"ms": "query_ms", "%": "mrr"}.get(found[2], "size_bytes"), value, text.strip())

    def met_by(self, tried: Tried, full_mrr: float) -> bool:
        """Whether a bundle is within it. full_mrr: of the best torch model among the stages."""
        if self.measure == "mrr":
            return tried.mrr >= self.bound * full_mrr
        return float(getattr(tried, self.measure)) <= self.bound

    def order(self, tried: Tried) -> tuple[float, ...]:
        """What to prefer within the budget, least first: the smallest that keeps enough, or what keeps most.

        Of all three measures, so that what is preferred to all others is on the frontier.
        """
        if self.measure == "mrr":
            return (tried.size_bytes, tried.query_ms, -tried.mrr)
        return (-tried.mrr, tried.size_bytes, tried.query_ms)

    def distance(self, tried: Tried) -> float:
        """How far a bundle that is not within it is from it, for comparison."""
        return -tried.mrr if self.measure == "mrr" else float(getattr(tried, self.measure))


def best(tried: Sequence[Tried], budget: Budget, full_mrr: float) -> Tried | None:
    """What to keep, one of the frontier; None if nothing that passed its gate is within the budget."""
    fitting = [one for one in tried if one.failure is None and budget.met_by(one, full_mrr)]
    return min(fitting, key=budget.order, default=None)


def frontier(tried: Sequence[Tried]) -> list[Tried]:
    """Those that none dominates, of those that passed their gates, smallest first."""
    passed = [one for one in tried if one.failure is None]
    return sorted(
        (one for one in passed if not any(other.dominates(one) for other in passed)), key=lambda one: one.size_bytes
    )


def question_ms(folder: Path, split: str, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median milliseconds of a question to a bundle, one at a time on one thread, of those that a split asks."""
    scorer = Scorer.load(folder, threads=1)
    rows = directed(scorer.known.triples(SPLIT_NAMES.index(split)), scorer.num_relations)
    chosen = rows[np.linspace(0, len(rows) - 1, QUESTIONS + WARM_UP).round().astype(np.int64)]
    took = [*_times(scorer, chosen, clock)][WARM_UP:]
    return float(np.median(took)) * 1000


def _times(scorer: Scorer, rows: np.ndarray, clock: Callable[[], float]) -> Iterator[float]:
    for head, relation, _ in rows.tolist():
        inverse, index = relation >= scorer.num_relations, relation % scorer.num_relations
        ask = scorer.top_heads if inverse else scorer.top_tails
        keys = (scorer.entity_ids[head], scorer.relation_ids[index])
        began = clock()
        ask(*(keys[::-1] if inverse else keys), k=10)
        yield clock() - began
