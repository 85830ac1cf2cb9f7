"""A knowledge graph with text, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pmd.serving.known import IntArray, KnownAnswers
from pmd.serving.neighbours import NeighbourGraph
from pmd.serving.texts import Templates, TextBuilder


@dataclass(frozen=True)
class KnowledgeGraph:
    """Entities E, relations R and triples, int64 (N, 3): head, relation, tail."""

    name: str
    entity_ids: tuple[str, ...]
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    relation_ids: tuple[str, ...]
    relation_texts: tuple[str, ...]
    train: IntArray
    valid: IntArray
    test: IntArray

    @property
    def num_entities(self) -> int:
        """E."""
        return len(self.entity_ids)

    @property
    def num_relations(self) -> int:
        """R; directed relations run from 0 to 2R - 1."""
        return len(self.relation_ids)

    def known(self) -> KnownAnswers:
        """Known answers of all splits, each with the split it came from."""
        return KnownAnswers.from_triples(self.num_entities, self.num_relations, self.train, self.valid, self.test)

    def train_known(self) -> KnownAnswers:
        """Known answers of the training split alone: all that training may look at. Sorted once."""
        return self._train_known

    def neighbours(self) -> NeighbourGraph:
        """The training graph without directions. Sorted once: every epoch's order and validation ask for it."""
        return self._neighbours

    @cached_property
    def _train_known(self) -> KnownAnswers:
        return KnownAnswers.from_triples(self.num_entities, self.num_relations, self.train)

    @cached_property
    def _neighbours(self) -> NeighbourGraph:
        return NeighbourGraph.from_triples(self.num_entities, self.train)

    def texts(self, templates: Templates) -> TextBuilder:
        """The wording of entities and queries; only training triples can reach a text."""
        return TextBuilder(
            self.names,
            self.descriptions,
            self.relation_texts,
            templates,
            self.neighbours(),
            self.train_known(),
        )

    def split(self, name: str) -> IntArray:
        """Triples of "train", "valid" or "test"."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def empty_triples() -> IntArray:
    """No triples, int64 (0, 3)."""
    return np.zeros((0, 3), dtype=np.int64)
