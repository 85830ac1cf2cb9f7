"""What a split gives away: repeats, overlaps, reversed triples, shared pairs, and what training never saw.

Everything is found by sorting integer keys: time N log N, no Python loop over triples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pmd.datasets.keys import BoolArray, among, num_repeats, pair_keys, triple_keys
from pmd.graph import KnowledgeGraph
from pmd.serving.known import SPLIT_NAMES, IntArray

HELD_OUT = SPLIT_NAMES[1:]


@dataclass(frozen=True)
class Leaks:
    """Of each held-out triple, bool (N,): what training gives away about it."""

    reversed: BoolArray
    """Some (tail, any relation, head) stands in train."""
    reversed_same: BoolArray
    """(tail, the same relation, head) stands in train."""
    same_pair: BoolArray
    """Some (head, any relation, tail) stands in train."""

    def shares(self) -> dict[str, float | None]:
        """Shares of the triples; None where there are none."""
        parts = {
            "reversed": self.reversed,
            "reversed_same_relation": self.reversed_same,
            "same_pair": self.same_pair,
        }
        return {name: float(part.mean()) if len(part) else None for name, part in parts.items()}


def leaks_of(graph: KnowledgeGraph, split: str) -> Leaks:
    """What train gives away of the triples of a split."""
    train, held, entities = graph.train, graph.split(split), graph.num_entities
    pairs = np.sort(pair_keys(train[:, 0], train[:, 2], entities))
    reverse = triple_keys(held[:, ::-1], entities, graph.num_relations)
    return Leaks(
        reversed=among(pair_keys(held[:, 2], held[:, 0], entities), pairs),
        reversed_same=among(reverse, _sorted_keys(graph, "train")),
        same_pair=among(pair_keys(held[:, 0], held[:, 2], entities), pairs),
    )


def repeats(graph: KnowledgeGraph) -> dict[str, int]:
    """Triples of each split that stand in it already."""
    return {split: num_repeats(_sorted_keys(graph, split)) for split in SPLIT_NAMES}


def overlaps(graph: KnowledgeGraph) -> dict[str, int]:
    """Triples of one split that stand in another as well."""
    keys = {split: _sorted_keys(graph, split) for split in SPLIT_NAMES}
    pairs = (("valid", "train"), ("test", "train"), ("test", "valid"))
    return {f"{one}_in_{other}": int(among(keys[one], keys[other]).sum()) for one, other in pairs}


def unseen(graph: KnowledgeGraph, split: str) -> dict[str, int]:
    """Entities and relations of a split that no training triple has, and the triples that name such an entity."""
    seen = np.zeros(graph.num_entities, dtype=bool)
    seen[graph.train[:, [0, 2]].ravel()] = True
    known = np.zeros(graph.num_relations, dtype=bool)
    known[graph.train[:, 1]] = True
    held = graph.split(split)
    return {
        "entities": int(_mentioned(held[:, [0, 2]], ~seen).sum()),
        "triples": int((~seen[held[:, [0, 2]]]).any(axis=1).sum()),
        "relations": int(_mentioned(held[:, 1], ~known).sum()),
    }


def by_relation(graph: KnowledgeGraph, reversed_in_test: BoolArray) -> list[dict[str, Any]]:
    """Triples of each relation by split, and the share of its test triples that stand reversed in train."""
    counts = {split: np.bincount(graph.split(split)[:, 1], minlength=graph.num_relations) for split in SPLIT_NAMES}
    leaked = np.bincount(graph.test[reversed_in_test, 1], minlength=graph.num_relations)
    return [
        {
            "relation": key,
            "text": text,
            **{split: int(counts[split][number]) for split in SPLIT_NAMES},
            "reversed": float(leaked[number] / counts["test"][number]) if counts["test"][number] else None,
        }
        for number, (key, text) in enumerate(zip(graph.relation_ids, graph.relation_texts, strict=True))
    ]


def _sorted_keys(graph: KnowledgeGraph, split: str) -> IntArray:
    return np.sort(triple_keys(graph.split(split), graph.num_entities, graph.num_relations))


def _mentioned(numbers: IntArray, wanted: BoolArray) -> BoolArray:
    """Which of the wanted numbers are mentioned, bool like `wanted`."""
    found = np.zeros(len(wanted), dtype=bool)
    found[numbers.ravel()] = True
    return found & wanted
