"""The wording of entities and queries, one place for training and serving alike.

SimKGC's rules (arXiv 2203.02167): an entity reads `name: description`; a description under 20 words is
followed by the names of its neighbours in the training graph; a query is the text pair (head text, relation
text). The neighbours of a query's head never include a training answer of that very query: in training they
would be the answer itself, and leaving out all of them, not only the one at hand, lets a query be encoded
once for all its answers and reads the same on the edge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from pmd.serving.errors import PmdError
from pmd.serving.known import TRAIN, IntArray, KnownAnswers
from pmd.serving.neighbours import NeighbourGraph

FIELD = re.compile(r"\{(\w+)\}")


class TemplateError(PmdError):
    """A text template names a field that does not exist."""


@dataclass(frozen=True)
class Templates:
    """How texts are worded; part of the recipe and of the bundle."""

    entity: str = "{name}: {description}"
    """An entity with a description."""
    bare_entity: str = "{name}"
    """An entity without one (and without neighbours to add)."""
    inverse: str = "inverse {relation}"
    """The relation text of head prediction."""
    neighbours: int = 10
    """At most this many neighbours' names follow a short description; 0 switches them off."""
    short_description_words: int = 20
    """A description with fewer words than this is short (SimKGC's value)."""

    def __post_init__(self) -> None:
        """Raise TemplateError for an unknown field."""
        allowed = {"entity": {"name", "description"}, "bare_entity": {"name"}, "inverse": {"relation"}}
        for template, fields in allowed.items():
            unknown = set(FIELD.findall(getattr(self, template))) - fields
            if unknown:
                raise TemplateError(
                    f"template {template} has unknown field {min(unknown)[:60]!r}; it may use {sorted(fields)}"
                )

    def as_dict(self) -> dict[str, str | int]:
        """Plain values for JSON and YAML."""
        return asdict(self)


def fill(template: str, **fields: str) -> str:
    """`template` with its {fields} replaced; what a field's text contains is never read as a field."""
    return FIELD.sub(lambda match: fields[match.group(1)], template)


def is_short(description: str, limit: int) -> bool:
    """Whether a description has fewer words than `limit`."""
    return len(description.split()) < limit


@dataclass(frozen=True)
class TextBuilder:
    """Texts of a graph's entities and directed queries."""

    names: Sequence[str]
    descriptions: Sequence[str]
    relation_texts: Sequence[str]
    templates: Templates
    graph: NeighbourGraph
    known: KnownAnswers
    gone: frozenset[int] = frozenset()
    """Entities that were removed: no text names them."""

    def entity(self, index: int) -> str:
        """The text of an entity, as the entity tower reads it."""
        return self._wording(index, 0, 0)

    def entities(self) -> list[str]:
        """The texts of all entities."""
        return [self.entity(index) for index in range(len(self.names))]

    def query(self, head: int, relation: int) -> tuple[str, str]:
        """The text pair of a directed query: (head text, relation text)."""
        return self._wording(head, *self.known.span(head, relation)), self.relation(relation)

    def queries(self, heads: IntArray, relations: IntArray) -> list[tuple[str, str]]:
        """The text pairs of many directed queries, (Q,), (Q,)."""
        starts, ends = self.known.spans(heads, relations)
        return [
            (self._wording(head, start, end), self.relation(relation))
            for head, relation, start, end in zip(
                heads.tolist(), relations.tolist(), starts.tolist(), ends.tolist(), strict=True
            )
        ]

    def relation(self, relation: int) -> str:
        """The text of a directed relation; those from R on are inverses."""
        count = len(self.relation_texts)
        if relation < count:
            return self.relation_texts[relation]
        return fill(self.templates.inverse, relation=self.relation_texts[relation - count])

    def wording(self, name: str, description: str = "") -> str:
        """The text of an entity that is not in the graph: no neighbours are known for it."""
        return _joined(self.templates, name, description)

    def shown_neighbours(self, head: int, relation: int) -> list[int]:
        """Indices of the neighbours whose names stand in a directed query's text, in its order."""
        return self._shown(head, *self.known.span(head, relation))

    def _shown(self, index: int, start: int, end: int) -> list[int]:
        """Neighbours that follow an entity's text: no training answer among `known.answers[start:end]`."""
        wanted = self.templates.neighbours
        if wanted <= 0 or not is_short(self.descriptions[index], self.templates.short_description_words):
            return []
        answers, splits = self.known.answers[start:end].tolist(), self.known.splits[start:end].tolist()
        hidden = {answer for answer, split in zip(answers, splits, strict=True) if split == TRAIN}
        neighbours = self.graph.neighbours(index).tolist()
        shown = (other for other in neighbours if other not in hidden and other not in self.gone)
        return list(islice(shown, wanted))

    def _wording(self, index: int, start: int, end: int) -> str:
        """An entity's text with the names of the neighbours that may be shown."""
        names = [self.names[other] for other in self._shown(index, start, end)]
        description = self.descriptions[index]
        if names:
            description = " ".join([description, *names]).strip()
        return _joined(self.templates, self.names[index], description)


def _joined(templates: Templates, name: str, description: str) -> str:
    if description:
        return fill(templates.entity, name=name, description=description)
    return fill(templates.bare_entity, name=name)
