"""The graph as it stands between two changes: who is who, and what each question reads.

A `Snapshot` is never changed. A Scorer holds one reference; a reader takes it once and is untouched by whatever
is added or removed meanwhile.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pmd.serving.errors import QueryError, ServingError, UnknownEntity, UnknownRelation
from pmd.serving.tables import Tables
from pmd.serving.texts import Templates, TextBuilder

NEAREST = 3
POOL = 1000  # names compared in full when none is close: 20 ms, where 80,000 would take seconds
KEY_CHARACTERS = 100  # difflib is slow on long texts, and a typing mistake shows early


class Lookup:
    """Ids, and names where they are unique, to indices."""

    def __init__(self, ids: Sequence[str], names: Sequence[str], kind: str, unknown: type[ServingError]) -> None:
        """ids: distinct. kind: what they are, for messages. unknown: the error to raise."""
        self.ids = tuple(ids)
        self._by_id = {key: index for index, key in enumerate(ids)}
        self._by_name: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            self._by_name.setdefault(name, []).append(index)
        self._kind, self._unknown = kind, unknown

    def match(self, key: str) -> int | None:
        """The index of an id, or else of a name that only one has; None without one."""
        if key in self._by_id:
            return self._by_id[key]
        named = self._by_name.get(key, [])
        return named[0] if len(named) == 1 else None

    def find(self, key: str) -> int:
        """As `match`; raises the unknown error, which names the bearers of the name or the nearest ids."""
        if not isinstance(key, str):
            raise QueryError(f"{self._kind}s are given by id or name, got {type(key).__name__} {str(key)[:60]!r}")
        index = self.match(key)
        if index is not None:
            return index
        shown = key if len(key) <= KEY_CHARACTERS else key[:KEY_CHARACTERS] + "…"
        if key in self._by_name:
            bearers = [self.ids[other] for other in self._by_name[key]]
            listed = ", ".join(bearers[:10]) + (f" and {len(bearers) - 10} more" if len(bearers) > 10 else "")
            raise self._unknown(f"{len(bearers)} {self._plural} are named {shown!r}; give an id: {listed}")
        raise self._unknown(
            f"no {self._kind} has the id or name {shown!r}; nearest: {', '.join(self._nearest(key))}"
        )

    @property
    def _plural(self) -> str:
        return "entities" if self._kind == "entity" else f"{self._kind}s"

    def _nearest(self, key: str) -> list[str]:
        key = key[:KEY_CHARACTERS]
        # Ids and names both: a name without its underscores is the commonest near miss.
        owners = {name: self.ids[bearers[0]] for name, bearers in self._by_name.items()} | {i: i for i in self.ids}
        close = difflib.get_close_matches(key, owners, n=2 * NEAREST)
        if len({owners[name] for name in close}) < NEAREST:
            some = sorted(owners, key=lambda name: abs(len(name) - len(key)))[:POOL]
            close += difflib.get_close_matches(key, some, n=2 * NEAREST, cutoff=0.0)
        return list(dict.fromkeys(owners[name] for name in close))[:NEAREST]


class Question(NamedTuple):
    """One directed query. head: the entity's index, None where it was given as text."""

    text: tuple[str, str]
    head: int | None
    relation: int


@dataclass(frozen=True)
class Snapshot:
    """Tables with the lookups and the text builder that belong to them."""

    tables: Tables
    entities: Lookup
    relations: Lookup
    texts: TextBuilder
    changes: tuple[int, int]
    """Entities added and removed since the bundle was exported."""

    @classmethod
    def of(cls, tables: Tables, templates: Templates, changes: tuple[int, int] = (0, 0)) -> Snapshot:
        """Build the lookups of tables."""
        names = [row.name for row in tables.entities]
        descriptions = [row.description for row in tables.entities]
        relation_texts = [row.text for row in tables.relations]
        return cls(
            tables,
            Lookup([row.id for row in tables.entities], names, "entity", UnknownEntity),
            Lookup([row.id for row in tables.relations], relation_texts, "relation", UnknownRelation),
            TextBuilder(names, descriptions, relation_texts, templates, tables.graph, tables.known),
            changes,
        )

    def question(self, key: str, relation: str, *, inverse: bool, is_text: bool) -> Question:
        """The directed query of an entity, or of a text, and a relation; `inverse` asks for heads.

        Raises UnknownEntity, UnknownRelation, and QueryError for a text that is empty or not text.
        """
        directed = self.relations.find(relation) + (len(self.relations.ids) if inverse else 0)
        if not is_text:
            head = self.entities.find(key)
            return Question(self.texts.query(head, directed), head, directed)
        return Question((self.texts.wording(checked_text(key)), self.texts.relation(directed)), None, directed)


def checked_text(text: str) -> str:
    """`text` itself. Raises QueryError if there is nothing in it, or half a character."""
    if not isinstance(text, str) or not text.strip():
        raise QueryError(f"the text of an entity is empty or no text at all: {str(text)[:60]!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise QueryError("the text of an entity is not valid Unicode; give it as UTF-8") from error
    return text
