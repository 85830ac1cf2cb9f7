"""The training graph without directions: whose names follow a short text, and who is within n hops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pmd.serving.known import IntArray, spread
from pmd.serving.ranking import FloatArray, ScoreQueries


@dataclass(frozen=True)
class NeighbourGraph:
    """Neighbours of every entity in the training graph, in CSR form.

    offsets: int64 (E + 1,). targets: int32 (M,), rising within an entity, without the entity itself.
    """

    offsets: IntArray
    targets: IntArray

    @classmethod
    def from_triples(cls, num_entities: int, train: IntArray) -> NeighbourGraph:
        """Build from the training triples, int (N, 3); no other split may come in here."""
        train = np.asarray(train, dtype=np.int64).reshape(-1, 3)
        head, tail = train[train[:, 0] != train[:, 2]][:, [0, 2]].T
        edges = np.concatenate([head * num_entities + tail, tail * num_entities + head])
        edges.sort()  # one key an edge: sorting rows takes ten times as long
        edges = edges[np.insert(edges[1:] != edges[:-1], 0, True)] if len(edges) else edges
        source, target = np.divmod(edges, num_entities)
        offsets = np.searchsorted(source, np.arange(num_entities + 1))
        return cls(offsets.astype(np.int64), target.astype(np.int32))

    def reindexed(self, place: IntArray, num_entities: int) -> NeighbourGraph:
        """The same graph after entities were added or removed.

        place: (E,), the new index of each old entity, rising, or -1 where it is gone together with its edges.
        """
        source = place[np.repeat(np.arange(self.num_entities), np.diff(self.offsets))]
        target = place[self.targets]
        keep = (source >= 0) & (target >= 0)
        offsets = np.searchsorted(source[keep], np.arange(num_entities + 1))
        return NeighbourGraph(offsets.astype(np.int64), target[keep].astype(np.int32))

    @property
    def num_entities(self) -> int:
        """E."""
        return len(self.offsets) - 1

    def neighbours(self, entity: int) -> IntArray:
        """Direct neighbours of one entity, int32, rising; none for an entity that came after the graph."""
        if entity >= self.num_entities:
            return self.targets[:0]
        return self.targets[self.offsets[entity] : self.offsets[entity + 1]]

    def within(self, entity: int, hops: int, *, without: IntArray | None = None) -> IntArray:
        """Entities at most `hops` edges away, the entity itself left out, int32, rising.

        without: entities that are neither reached nor passed through.
        """
        seen = np.zeros(self.num_entities, dtype=bool)
        barred = np.zeros(0, np.int64) if without is None else without[without < self.num_entities]
        seen[barred] = True
        seen[entity] = True
        frontier = np.array([entity], dtype=np.int64)
        for _ in range(hops):
            starts = self.offsets[frontier]
            _, place = spread(starts, self.offsets[frontier + 1] - starts)
            reached = np.unique(self.targets[place])
            frontier = reached[~seen[reached]].astype(np.int64)
            seen[frontier] = True
            if not len(frontier):
                break
        seen[entity] = False
        seen[barred] = False
        return np.flatnonzero(seen).astype(np.int32)


def reranked(score_queries: ScoreQueries, graph: NeighbourGraph, *, hops: int, weight: float) -> ScoreQueries:
    """Scores with `weight` added to candidates within `hops` of the query's entity.

    Neighbour re-ranking of SimKGC (arXiv 2203.02167), which published figures include; ours are
    always reported without it as well.
    """

    def scores(heads: IntArray, relations: IntArray) -> FloatArray:
        plain = score_queries(heads, relations).copy()
        for row, head in enumerate(heads):
            plain[row, graph.within(int(head), hops)] += weight
        return plain

    return scores
