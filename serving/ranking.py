"""The ranking rule: filtered, realistic ranks, and the metrics made of them.

Every rank in this project, in training, in serving and in the benchmarks, comes from this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pmd.serving.errors import PmdError
from pmd.serving.known import IntArray, KnownAnswers, directed, spread

FloatArray: TypeAlias = NDArray[np.floating]
Metrics: TypeAlias = dict[str, Any]
ScoreQueries: TypeAlias = Callable[[IntArray, IntArray], FloatArray]
"""Scores of directed queries against every entity: heads (Q,), relations (Q,) -> (Q, E)."""

RankKind: TypeAlias = Literal["optimistic", "realistic", "pessimistic"]

TIE_SHARE: dict[RankKind, float] = {"optimistic": 0.0, "realistic": 0.5, "pessimistic": 1.0}
"""Share of the equals that a gold entity is put behind."""
COUNTS = ("above", "level", "known_above", "known_level", "known")
"""The rows of `Ranks.counts`."""
HITS = (1, 3, 10)
QUERY_BLOCK = 512  # 512 x 40,943 float32 scores are 84 MB; the block never changes a rank


class RankingError(PmdError):
    """Scores that cannot be ranked."""

    exit_code = 1


@dataclass(frozen=True)
class Ranks:
    """How many entities stand above and level with the gold one, for N directed triples.

    counts: int64 (5, N), with rows above and level, over all other entities, and known_above, known_level and
    known, over the other known answers of the query, which the filtered rank leaves out. Every kind of rank
    follows from these counts. num_entities: E.
    """

    counts: IntArray
    num_entities: int

    def rank(self, kind: RankKind = "realistic", *, filtered: bool = True) -> FloatArray:
        """1-based ranks, float64 (N,), by tie rule.

        optimistic: ahead of all equals; pessimistic: behind them; realistic: their mean (Berrendorf et al.,
        arXiv 2002.06914), the rule of every figure here, since quantised scores tie often.
        """
        above, level, known_above, known_level, _ = self.counts
        if filtered:
            above, level = above - known_above, level - known_level
        return np.asarray(1.0 + above + level * TIE_SHARE[kind])

    def candidates(self, *, filtered: bool = True) -> IntArray:
        """How many entities were ranked, the gold one among them, int64 (N,)."""
        return np.asarray(self.num_entities - self.counts[4] * filtered)

    def take(self, index: IntArray) -> Ranks:
        """The ranks of some of the triples."""
        return Ranks(self.counts[:, index], self.num_entities)


def count_ranks(scores: FloatArray, row: IntArray, gold: IntArray, known: tuple[IntArray, IntArray]) -> Ranks:
    """Where each gold entity stands among the scores of its query.

    scores: (Q, E). row, gold: (N,), the query and the answer of each triple. known: query index (rising) and
    entity of every known answer, gold ones included. The known answers are counted rather than written into the
    scores, so that several gold answers of a query share its row. Raises RankingError if a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise RankingError("the model gave scores that are NaN or infinite; they cannot be ranked")
    above, level = np.empty((2, len(row)), np.int64)
    for place, (query, entity) in enumerate(zip(row, gold, strict=True)):  # a row fits the cache; a block would not
        own = scores[query, entity]
        above[place] = np.count_nonzero(scores[query] > own)
        level[place] = np.count_nonzero(scores[query] == own) - 1
    return Ranks(np.stack([above, level, *_known_counts(scores, row, gold, known)]), scores.shape[1])


def _known_counts(
    scores: FloatArray, row: IntArray, gold: IntArray, known: tuple[IntArray, IntArray]
) -> tuple[IntArray, IntArray, IntArray]:
    """Other known answers of each triple's query: above its gold, level with it, and in all. int64 (N,) each."""
    query, entity = known
    start = np.searchsorted(query, np.arange(len(scores) + 1))
    triple, place = spread(start[row], np.diff(start)[row])
    other = entity[place] != gold[triple]
    score, own = scores[query[place], entity[place]], scores[row, gold][triple]

    def counted(which: NDArray[np.bool_]) -> IntArray:
        return np.bincount(triple[which & other], minlength=len(row))

    return counted(score > own), counted(score == own), counted(np.ones_like(other))


def rank_triples(
    score_queries: ScoreQueries, triples: IntArray, known: KnownAnswers, *, block: int = QUERY_BLOCK
) -> Ranks:
    """Ranks of (N, 3) triples in both directions, 2N in all: every tail, then every head by the inverse relation.

    Each distinct directed query is scored once, `block` queries at a time.
    """
    wanted = directed(triples, known.num_relations)
    keys, row = np.unique(wanted[:, 1] * known.num_entities + wanted[:, 0], return_inverse=True)
    order = np.argsort(row, kind="stable")
    parts = []
    for first in range(0, len(keys), block):
        heads = keys[first : first + block] % known.num_entities
        relations = keys[first : first + block] // known.num_entities
        mine = order[slice(*np.searchsorted(row[order], [first, first + block]))]
        scores = score_queries(heads, relations)
        parts.append(count_ranks(scores, row[mine] - first, wanted[mine, 2], known.pairs(heads, relations)))
    counts = np.concatenate([np.zeros((5, 0), np.int64), *(part.counts for part in parts)], axis=1)
    return Ranks(counts, known.num_entities).take(np.argsort(order, kind="stable"))


def summarise(ranks: FloatArray) -> Metrics:
    """MRR, mean rank and Hits@1/3/10 (fractions) of ranks, float64 (N,). Raises RankingError on no ranks."""
    if not len(ranks):
        raise RankingError("no triples to rank: the split is empty")
    hits = {f"hits@{k}": float((ranks <= k).mean()) for k in HITS}
    return {"mrr": float((1 / ranks).mean()), "mean_rank": float(ranks.mean()), **hits, "queries": len(ranks)}


def evaluate(
    score_queries: ScoreQueries, triples: IntArray, known: KnownAnswers, *, block: int = QUERY_BLOCK
) -> Metrics:
    """Filtered metrics of a split, (N, 3) triples: over both directions, and `head` and `tail` apart."""
    return metrics_of(rank_triples(score_queries, triples, known, block=block))


def metrics_of(ranks: Ranks) -> Metrics:
    """Filtered realistic metrics of the ranks of a split, as `rank_triples` orders them: tails, then heads."""
    values = ranks.rank()
    tail, head = np.split(values, 2)
    return {**summarise(values), "head": summarise(head), "tail": summarise(tail)}
