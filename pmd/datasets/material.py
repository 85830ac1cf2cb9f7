"""What every reader hands over: tables of ids with texts, and triples as numbers, split or whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph, empty_triples
from pmd.serving.known import SPLIT_NAMES, IntArray

SHOWN = 80  # characters of an id in a message
WHOLE = "all"  # the key of triples that their source does not split


@dataclass(frozen=True)
class Table:
    """Ids with a name (or relation text) and a description each; "" where there is none."""

    ids: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)

    @classmethod
    def bare(cls, ids: list[str]) -> Table:
        """Ids alone."""
        return cls(ids, [""] * len(ids), [""] * len(ids))


class TableBuilder:
    """A table that grows line by line and refuses what makes an id ambiguous.

    place: "file:line" of a line number, for the message.
    """

    def __init__(self, place: Callable[[int], str]) -> None:
        self.table = Table()
        self._place = place
        self._lines: dict[str, int] = {}

    def add(self, number: int, key: str, name: str, description: str = "") -> None:
        """Add a row. Raises DatasetError if the id is blank or was there before."""
        first = self._lines.setdefault(key, number)
        if first != number or not key.strip():
            raise DatasetError(f"{self._place(number)}: {self._fault(key, name, description, first)}")
        self.table.ids.append(key)
        self.table.names.append(name)
        self.table.descriptions.append(description)

    def _fault(self, key: str, name: str, description: str, first: int) -> str:
        if not key.strip():
            return "the id is empty; every entity and relation needs one"
        row = self.table.ids.index(key)
        same = (self.table.names[row], self.table.descriptions[row]) == (name, description)
        texts = "the same texts" if same else "other texts"
        there = f"first at {self._place(first)}"
        return f"id {key[:SHOWN]!r} stands here a second time, with {texts} ({there}); keep one of them"


@dataclass(frozen=True)
class Material:
    """A graph as read. splits: int64 (N, 3) under "train", "valid", "test", or all of it under "all"."""

    name: str
    entities: Table
    relations: Table
    splits: Mapping[str, IntArray]
    skipped: int = 0
    """Triples left out because they name an unknown id; only where the reader was told to."""

    @property
    def is_whole(self) -> bool:
        """Whether the source names no splits, so that they are still to be made."""
        return WHOLE in self.splits

    def graph(self) -> KnowledgeGraph:
        """The graph, names filled in from ids where there are none; an unsplit one is all training."""
        train = self.splits.get(WHOLE, self.splits.get("train", empty_triples()))
        given = {split: self.splits.get(split, empty_triples()) for split in SPLIT_NAMES[1:]}
        return KnowledgeGraph(
            name=self.name,
            entity_ids=tuple(self.entities.ids),
            names=_filled(self.entities),
            descriptions=tuple(self.entities.descriptions),
            relation_ids=tuple(self.relations.ids),
            relation_texts=_filled(self.relations),
            train=train,
            **given,
        )


def in_words(identifier: str) -> str:
    """An id as words, for graphs without texts: underscores become spaces."""
    return identifier.replace("_", " ").strip() or identifier


def _filled(table: Table) -> tuple[str, ...]:
    return tuple(name or in_words(key) for key, name in zip(table.ids, table.names, strict=True))
