"""The best answers of queries: a fast pass over all entities, then exact scores of the few that it leaves.

The pass (`pmd.serving.scan`) says how far off it can be. Every entity whose score could still be among the k best
is scored again, exactly, and only exact scores are compared and returned. So what comes back is, to the last bit,
what scoring every entity exactly would give, on every processor and for every number of threads and batch. Small
tables are scored exactly at once where that is faster: both ways are timed when a Search is made, and `about` says
which one was taken.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray
from pmd.serving.scan import make_scan
from pmd.serving.vectors import GRID, VectorTable, on_grid, top_k

QUERIES_AT_ONCE = 64  # 64 x 41,000 float32 scores are 10 MB
NEAR_MARGIN = 10  # asked of an index beyond what is wanted
FEW = 2048  # candidates that are scored exactly without a pass over the table
GROUPS = 1024  # the k-th best of as many maxima is found in a tenth of the time of the k-th best of 41,000 scores
TRIAL_ENTITIES, TRIAL_ANSWERS, TRIALS = 8192, 10, 3
LOWEST = float(np.finfo(np.float32).min)
EXACT = "numpy, exact scores of every entity"


class Wish(NamedTuple):
    """What is wanted for one query. excluded: indices that may not come back; allowed: the only ones that may.

    nearer: indices whose scores rise by `weight`. Indices are int arrays without repetition.
    """

    k: int
    excluded: IntArray | None = None
    allowed: IntArray | None = None
    nearer: IntArray | None = None
    weight: float = 0.0


class Fresh(NamedTuple):
    """Vectors that replace rows of the table or follow it. slots: their indices, int64 (N,), rising.

    gone: indices that hold no entity any more, int64, rising. size: entities in all, rows that are gone included.
    """

    slots: IntArray
    vectors: VectorTable
    gone: IntArray
    size: int


Found = tuple[IntArray, FloatArray]
"""Indices of the best answers, best first (of equal scores the lower index), and their scores, float32."""


class Near(Protocol):
    """An index that names likely answers; see `pmd.serving.near`."""

    about: str
    """What it is, in words."""

    def candidates(self, query: FloatArray, count: int) -> IntArray:
        """Indices of some `count` entities near to a query (D,), int64, rising."""


class Search:
    """Finds the best answers in one table; safe to share between threads."""

    def __init__(self, table: VectorTable, *, threads: int | None = None, near: Near | None = None) -> None:
        """threads: of the pass, default as `cores.default_threads`. near: an index to ask in place of the pass.

        Raises MissingExtra without onnxruntime.
        """
        trial = table if len(table) <= TRIAL_ENTITIES else table.take(np.arange(TRIAL_ENTITIES))
        self.table, self._near = trial, None
        self._scan = make_scan(trial, threads)
        if self._scan is not None and not _is_faster(self):
            self._scan = None
        if self._scan is not None and trial is not table:
            self._scan = make_scan(table, threads)
        self.table, self._near = table, near
        used = near or self._scan
        self.about = EXACT if used is None else used.about

    def best(self, queries: FloatArray, wishes: Sequence[Wish], fresh: Fresh | None = None) -> list[Found]:
        """The best answers of query vectors (Q, D), one wish each. Raises RankingError for scores not finite."""
        found: list[Found] = []
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(first, first + QUERIES_AT_ONCE)
            found += self._block(on_grid(queries[part]), wishes[part], fresh)
        return found

    def pair_scores(self, queries: FloatArray, entities: IntArray, fresh: Fresh) -> FloatArray:
        """Exact score of each query vector (N, D) with its own entity (N,), float32 (N,)."""
        new, place = _in_fresh(entities, fresh)
        scores = np.empty(len(entities), np.float32)
        scores[new] = fresh.vectors.pair_scores(queries[new], place[new])
        scores[~new] = self.table.pair_scores(queries[~new], entities[~new])
        return scores

    def _block(self, grid: FloatArray, wishes: Sequence[Wish], fresh: Fresh | None) -> list[Found]:
        many = [number for number, wish in enumerate(wishes) if self._needs_a_pass(wish)]
        scores, slack = self._rough(grid[many])
        rough = dict(zip(many, zip(scores, slack, strict=True), strict=True))
        return [
            self._answer(rough.get(number), query, wish, fresh)
            for number, (query, wish) in enumerate(zip(grid, wishes, strict=True))
        ]

    def _answer(
        self, rough: tuple[FloatArray, float] | None, query: FloatArray, wish: Wish, fresh: Fresh | None
    ) -> Found:
        if rough is None:
            candidates = _left(self._named(query, wish, fresh), wish, fresh)
        else:
            scores = _masked(rough[0], query, wish, fresh)
            if self._scan is None:  # these are exact
                best = top_k(scores, wish.k)
                return best, scores[best]
            slack = rough[1] + abs(wish.weight) * 2.0**-22
            floor = _kth_or_less(scores, wish.k) - 2 * slack
            candidates = np.flatnonzero(scores >= max(floor, LOWEST))
        return _chosen(candidates, self.table, query, wish, fresh)

    def _needs_a_pass(self, wish: Wish) -> bool:
        if wish.allowed is not None:
            return len(wish.allowed) > FEW
        return self._near is None

    def _rough(self, grid: FloatArray) -> tuple[FloatArray, FloatArray]:
        if not len(grid):
            return np.zeros((0, len(self.table)), np.float32), np.zeros(0)
        if self._scan is None:
            return self.table.scores(grid / GRID), np.zeros(len(grid))
        return self._scan(grid / GRID)

    def _named(self, query: FloatArray, wish: Wish, fresh: Fresh | None) -> IntArray:
        """The few entities that come into question without a pass, rising."""
        if wish.allowed is not None or self._near is None:
            return np.unique(np.asarray(wish.allowed, dtype=np.int64))
        barred = [part for part in (wish.excluded, None if fresh is None else fresh.gone) if part is not None]
        count = min(wish.k + sum(map(len, barred)) + NEAR_MARGIN, len(self.table))
        beside = [part for part in (wish.nearer, None if fresh is None else fresh.slots) if part is not None]
        return np.unique(np.concatenate([self._near.candidates(query / GRID, count), *beside]))


def _masked(scores: FloatArray, query: FloatArray, wish: Wish, fresh: Fresh | None) -> FloatArray:
    """Scores (E,) with what is fresh put in, weight added, and -inf for all that may not be an answer."""
    if fresh is not None:
        scores = np.concatenate([scores, np.full(fresh.size - len(scores), -np.inf, np.float32)])
        scores[fresh.slots] = fresh.vectors.some_scores(query, np.arange(len(fresh.slots)))
    if wish.nearer is not None:
        scores[wish.nearer] += np.float32(wish.weight)
    if wish.allowed is not None:
        kept = scores[wish.allowed]
        scores.fill(-np.inf)
        scores[wish.allowed] = kept
    if wish.excluded is not None:
        scores[wish.excluded] = -np.inf
    if fresh is not None:
        scores[fresh.gone] = -np.inf
    return scores


def _chosen(candidates: IntArray, table: VectorTable, query: FloatArray, wish: Wish, fresh: Fresh | None) -> Found:
    """The k best of some candidates (rising), by exact scores."""
    scores = _exact(candidates, table, query, fresh)
    if wish.nearer is not None:
        scores[np.isin(candidates, wish.nearer)] += np.float32(wish.weight)
    best = np.argsort(-scores, kind="stable")[: wish.k]  # candidates rise, so of equals the lower comes first
    return candidates[best], scores[best]


def _exact(candidates: IntArray, table: VectorTable, query: FloatArray, fresh: Fresh | None) -> FloatArray:
    if fresh is None or not len(fresh.slots):
        return table.some_scores(query, candidates)
    new, place = _in_fresh(candidates, fresh)
    scores = np.empty(len(candidates), np.float32)
    scores[new] = fresh.vectors.some_scores(query, place[new])
    scores[~new] = table.some_scores(query, candidates[~new])
    return scores


def _in_fresh(entities: IntArray, fresh: Fresh) -> tuple[NDArray[np.bool_], IntArray]:
    """Which entities (N,) have a new vector, and its place in `fresh`, both (N,)."""
    place = np.searchsorted(fresh.slots, entities)
    inside = place < len(fresh.slots)
    new = inside.copy()
    new[inside] = fresh.slots[place[inside]] == entities[inside]
    return new, place


def _left(named: IntArray, wish: Wish, fresh: Fresh | None) -> IntArray:
    """Those of some entities (rising) that may be answers."""
    allowed = named
    for others in (wish.excluded, None if fresh is None else fresh.gone):
        if others is not None:
            allowed = allowed[~np.isin(allowed, others)]
    return allowed


def _kth_or_less(scores: FloatArray, k: int) -> float:
    """A number that at least k of the scores (E,) reach, near to the k-th best; -inf if there are fewer than k."""
    if len(scores) < k:
        return -np.inf
    groups = max(GROUPS, 16 * k)
    size = len(scores) // groups
    if size > 1:  # each group holds one score in every `groups`, so near neighbours are not in one group
        rest = scores[size * groups :]
        scores = np.concatenate([scores[: size * groups].reshape(size, groups).max(axis=0), rest])
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def _is_faster(search: Search) -> bool:
    """Whether a search of a small table takes less time with its pass than with exact scores of every entity."""
    query = np.zeros((1, search.table.width), np.float32)
    query[0, 0] = 1.0
    scan, best = search._scan, []
    for way in (scan, None):
        search._scan, laps = way, []
        for _ in range(TRIALS):
            start = time.perf_counter()
            search.best(query, [Wish(TRIAL_ANSWERS)])
            laps.append(time.perf_counter() - start)
        best.append(min(laps))
    search._scan = scan
    return best[0] < best[1]
