"""The graph as it stands between two changes: who is who, and what each question reads.

A `Snapshot` is never changed. A reader takes one and is untouched by whatever is added, updated or removed
meanwhile: a change makes a new one, which shares all that is large with the old. Vectors that are new are kept
beside the table, in `Fresh`; `compacted` puts them into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pmd.serving.asked import shown
from pmd.serving.errors import QueryError, UnknownEntity, UnknownRelation
from pmd.serving.known import IntArray
from pmd.serving.lookup import Lookup
from pmd.serving.ranking import FloatArray
from pmd.serving.rows import ChangedRows, Column, EntityRow, column
from pmd.serving.search import Fresh
from pmd.serving.tables import Tables
from pmd.serving.texts import Templates, TextBuilder
from pmd.serving.vectors import VectorTable

NONE = np.zeros(0, np.int64)


class Changes(NamedTuple):
    """Entities added, removed and updated since the bundle was exported."""

    added: int = 0
    removed: int = 0
    updated: int = 0


UNCHANGED = Changes()


class Question(NamedTuple):
    """One directed query. head: the entity's index, None where it was given as text."""

    text: tuple[str, str]
    head: int | None
    relation: int


@dataclass(frozen=True)
class Snapshot:
    """A graph's tables, with what was changed since they were read laid over them.

    Entities have indices: those of the tables first, then those added, in their order. An index is not used again
    when its entity is removed. rows: one for each index.
    """

    tables: Tables
    rows: Sequence[EntityRow]
    entities: Lookup
    relations: Lookup
    texts: TextBuilder
    fresh: Fresh
    changes: Changes

    @classmethod
    def of(cls, tables: Tables, templates: Templates, changes: Changes = UNCHANGED) -> Snapshot:
        """The graph of tables, nothing changed."""
        return cls(
            tables,
            tables.entities,
            Lookup.of(tables.entities, "entity", UnknownEntity),
            Lookup.of(tables.relations, "relation", UnknownRelation),
            TextBuilder(
                Column(tables.entities, 1),
                Column(tables.entities, 2),
                [row.text for row in tables.relations],
                templates,
                tables.graph,
                tables.known,
            ),
            Fresh(NONE, tables.vectors.take(NONE), NONE, len(tables.entities)),
            changes,
        )

    @property
    def num_entities(self) -> int:
        """Entities that are there."""
        return len(self.rows) - len(self.fresh.gone)

    @property
    def changed(self) -> Fresh | None:
        """What a search must know beside the table, None if nothing was changed."""
        return self.fresh if self.weight_of_changes else None

    @property
    def weight_of_changes(self) -> int:
        """Rows laid over the tables."""
        return len(self.fresh.slots) + len(self.fresh.gone)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of the entities that are there, in the order of `compacted`."""
        return tuple(column(self.compacted.rows, 0))

    @property
    def compacted(self) -> Snapshot:
        """The same graph without indices that hold nothing, and with every vector in the table."""
        return self._compacted if self.weight_of_changes else self  # kept in itself, it would outlive its last use

    @cached_property
    def _compacted(self) -> Snapshot:
        fresh, base = self.fresh, self.tables
        live = np.delete(np.arange(fresh.size), fresh.gone)
        place = np.full(fresh.size, -1)
        place[live] = np.arange(len(live))
        old = place[: len(base.entities)]
        tables = replace(
            base,
            entities=tuple(self.rows[index] for index in live.tolist()),
            vectors=_merged(base.vectors, fresh).take(live),
            known=base.known.reindexed(old, len(live)),
            graph=base.graph.reindexed(old, len(live)),
        )
        return Snapshot.of(tables, self.texts.templates, self.changes)

    def with_row(self, row: EntityRow, vector: FloatArray) -> Snapshot:
        """With an entity added, or with another row and unit vector (D,) for the entity that has its id."""
        index = self.entities.of_id(row.id)
        added = index is None
        slot = len(self.rows) if index is None else index
        rows = ChangedRows.over(self.rows, slot, row)
        fresh, changes = self.fresh, self.changes
        kept = fresh.slots != slot
        slots = np.append(fresh.slots[kept], slot)
        order = np.argsort(slots)
        vectors = fresh.vectors.take(np.flatnonzero(kept)).appended(vector).take(order)
        return replace(
            self,
            rows=rows,
            entities=self.entities.put(rows, slot),
            texts=self._worded(rows),
            fresh=Fresh(slots[order], vectors, fresh.gone, len(rows)),
            changes=changes._replace(added=changes.added + added, updated=changes.updated + (not added)),
        )

    def text_with(self, index: int, row: EntityRow) -> str:
        """The text of the entity at an index, if `row` were its row."""
        return self._worded(ChangedRows.over(self.rows, index, row)).entity(index)

    def without(self, index: int) -> Snapshot:
        """Without the entity at an index and all that is known about it."""
        gone = np.sort(np.append(self.fresh.gone, index))
        return replace(
            self,
            entities=self.entities.drop(index),
            texts=replace(self.texts, gone=frozenset(gone.tolist())),
            fresh=self.fresh._replace(gone=gone),
            changes=self.changes._replace(removed=self.changes.removed + 1),
        )

    def _worded(self, rows: Sequence[EntityRow]) -> TextBuilder:
        return replace(self.texts, names=Column(rows, 1), descriptions=Column(rows, 2))

    def question(self, key: str, relation: str, *, inverse: bool, is_text: bool) -> Question:
        """The directed query of an entity, or of a text, and a relation; `inverse` asks for heads.

        Raises UnknownEntity, UnknownRelation, and QueryError for a text that is empty or not text.
        """
        directed = self.relations.find(relation) + (len(self.tables.relations) if inverse else 0)
        if not is_text:
            head = self.entities.find(key)
            return Question(self.texts.query(head, directed), head, directed)
        return Question((self.texts.wording(checked_text(key)), self.texts.relation(directed)), None, directed)

    def known_answers(self, question: Question) -> IntArray:
        """Indices of the answers that the graph already has; none for a text."""
        if question.head is None:
            return NONE
        return self.tables.known.answers_of(question.head, question.relation)

    def within(self, question: Question, hops: int) -> IntArray:
        """Indices at most `hops` edges away from the question's entity; none for a text or without hops."""
        if question.head is None or not hops or question.head >= self.tables.graph.num_entities:
            return NONE
        return self.tables.graph.within(question.head, hops, without=self.fresh.gone)


def _merged(base: VectorTable, fresh: Fresh) -> VectorTable:
    """Every index's vector, those that are gone included."""
    place = np.arange(fresh.size)
    place[fresh.slots] = len(base) + np.arange(len(fresh.slots))
    return base.joined(fresh.vectors).take(place)


def checked_text(text: str) -> str:
    """`text` itself. Raises QueryError if there is nothing in it, or half a character."""
    if not isinstance(text, str) or not text.strip():
        raise QueryError(f"the text of an entity is empty or no text at all: {shown(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise QueryError("the text of an entity is not valid Unicode; give it as UTF-8") from error
    return text
