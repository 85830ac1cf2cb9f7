"""The ranking rule: filtered, realistic ranks, and the metrics made of them.

Every rank in this project, in training, in serving and in the benchmarks, comes from this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pmd.serving.errors import PmdError
from pmd.serving.known import IntArray, KnownAnswers, directed

FloatArray: TypeAlias = NDArray[np.floating]
Metrics: TypeAlias = dict[str, Any]
ScoreQueries: TypeAlias = Callable[[IntArray, IntArray], FloatArray]
"""Scores of directed queries against every entity: heads (Q,), relations (Q,) -> (Q, E)."""

HITS = (1, 3, 10)
QUERY_BLOCK = 512  # 512 x 40,943 float32 scores are 84 MB; the block never changes a rank


class RankingError(PmdError):
    """Scores that cannot be ranked."""

    exit_code = 1


def filtered_ranks(
    scores: FloatArray, row: IntArray, gold: IntArray, known: tuple[IntArray, IntArray]
) -> FloatArray:
    """Filtered realistic rank of each gold entity: 1-based, equal scores share the middle.

    scores: (Q, E). row, gold: (N,), the query and the answer of each triple. known: query index and entity of
    every known answer, which never stand in a gold entity's way. Returns float64 (N,).

    The known answers are subtracted from the counts rather than written into the scores, so that several gold
    answers of a query share its row. Ties take the mean of the optimistic and the pessimistic rank
    (Berrendorf et al., arXiv 2002.06914): quantised scores tie often.
    """
    if not np.isfinite(scores).all():
        raise RankingError("the model gave scores that are NaN or infinite; they cannot be ranked")
    own = scores[row, gold]
    better, tied = np.empty(len(row)), np.empty(len(row))
    order = np.argsort(row, kind="stable")
    for index in np.array_split(order, max(1, len(order) // 256)):
        block = scores[row[index]]
        better[index] = (block > own[index, None]).sum(axis=1)
        tied[index] = (block == own[index, None]).sum(axis=1) - 1
    known_better, known_tied = _known_counts(scores, row, gold, known)
    return 1.0 + (better - known_better) + (tied - known_tied) / 2


def _known_counts(
    scores: FloatArray, row: IntArray, gold: IntArray, known: tuple[IntArray, IntArray]
) -> tuple[IntArray, IntArray]:
    """How many other known answers of each triple's query score above, and equal to, its gold. (N,), (N,)."""
    query, entity = known
    start = np.searchsorted(query, np.arange(len(scores) + 1))  # `query` rises: KnownAnswers.pairs makes it so
    count = np.diff(start)[row]
    triple = np.repeat(np.arange(len(row)), count)
    place = np.repeat(start[row], count) + np.arange(len(triple)) - np.repeat(np.cumsum(count) - count, count)
    other = entity[place] != gold[triple]
    score, own = scores[query[place], entity[place]], scores[row, gold][triple]
    better = np.bincount(triple[(score > own) & other], minlength=len(row))
    tied = np.bincount(triple[(score == own) & other], minlength=len(row))
    return better, tied


def ranks_of(
    score_queries: ScoreQueries, triples: IntArray, known: KnownAnswers, *, block: int = QUERY_BLOCK
) -> FloatArray:
    """Filtered ranks of a split, float64 (2N,): first every tail, then every head (by the inverse relation).

    Each distinct directed query is scored once, `block` queries at a time.
    """
    wanted = directed(triples, known.num_relations)
    keys, row = np.unique(wanted[:, 1] * known.num_entities + wanted[:, 0], return_inverse=True)
    ranks = np.empty(len(wanted))
    for first in range(0, len(keys), block):
        heads = keys[first : first + block] % known.num_entities
        relations = keys[first : first + block] // known.num_entities
        scores = score_queries(heads, relations)
        mine = np.flatnonzero((row >= first) & (row < first + block))
        ranks[mine] = filtered_ranks(scores, row[mine] - first, wanted[mine, 2], known.pairs(heads, relations))
    return ranks


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
    ranks = ranks_of(score_queries, triples, known, block=block)
    tail, head = np.split(ranks, 2)
    return {**summarise(ranks), "head": summarise(head), "tail": summarise(tail)}
