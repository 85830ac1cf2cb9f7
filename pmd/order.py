"""The order of an epoch: at random, or along the graph so that entities repeat within a batch."""

from __future__ import annotations

import numpy as np

from pmd.serving.known import IntArray
from pmd.serving.neighbours import NeighbourGraph


def graph_places(graph: NeighbourGraph, rng: np.random.Generator) -> IntArray:
    """Each entity's place, int64 (E,), in a random depth-first walk over the whole graph.

    Entities next to each other in the walk are mostly neighbours, so queries sorted by the place of their head
    share heads and answers. Time and memory are linear in entities and edges; every epoch can have its own walk.
    """
    order: list[int] = []
    seen = bytearray(graph.num_entities)
    offsets = graph.offsets.tolist()
    targets = _shuffled_within(graph, rng)
    for root in rng.permutation(graph.num_entities).tolist():
        stack = [root]
        while stack:
            entity = stack.pop()
            if not seen[entity]:
                seen[entity] = 1
                order.append(entity)
                stack += targets[offsets[entity] : offsets[entity + 1]]
    places = np.empty(graph.num_entities, dtype=np.int64)
    places[order] = np.arange(len(order))
    return places


def ordered_rows(rows: IntArray, heads: IntArray, places: IntArray, rng: np.random.Generator) -> IntArray:
    """Rows (N, …) sorted by the place of their head (N,); rows of the same head in random order."""
    return rows[np.lexsort((rng.random(len(rows)), places[heads]))]


def _shuffled_within(graph: NeighbourGraph, rng: np.random.Generator) -> list[int]:
    """The graph's targets, in random order within each entity."""
    owner = np.repeat(np.arange(graph.num_entities), np.diff(graph.offsets))
    order = np.lexsort((rng.random(len(owner)), owner))
    shuffled: list[int] = graph.targets[order].tolist()
    return shuffled
