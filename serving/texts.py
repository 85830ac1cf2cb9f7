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

import numpy as np

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
                    f"template {template} has unknown field {sorted(unknown)[0]!r}; it may use {sorted(fields)}"
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

    def entity(self, index: int) -> str:
        """The text of an entity, as the entity tower reads it."""
        return self._wording(index, hidden=np.zeros(0, np.int32))

    def query(self, head: int, relation: int) -> tuple[str, str]:
        """The text pair of a directed query: (head text, relation text)."""
        hidden = np.zeros(0, np.int32)
        if self._wants_neighbours(self.descriptions[head]):
            start, end = (int(bound[0]) for bound in self.known.spans(np.array([head]), np.array([relation])))
            hidden = self.known.answers[start:end][self.known.splits[start:end] == TRAIN]
        return self._wording(head, hidden), self.relation(relation)

    def relation(self, relation: int) -> str:
        """The text of a directed relation; those from R on are inverses."""
        count = len(self.relation_texts)
        if relation < count:
            return self.relation_texts[relation]
        return fill(self.templates.inverse, relation=self.relation_texts[relation - count])

    def wording(self, name: str, description: str = "") -> str:
        """The text of an entity that is not in the graph: no neighbours are known for it."""
        return _joined(self.templates, name, description)

    def _wants_neighbours(self, description: str) -> bool:
        return self.templates.neighbours > 0 and is_short(description, self.templates.short_description_words)

    def _wording(self, index: int, hidden: IntArray) -> str:
        description = self.descriptions[index]
        if self._wants_neighbours(description):
            near = self.graph.neighbours(index)
            near = near[~np.isin(near, hidden)][: self.templates.neighbours]
            description = " ".join([description, *(self.names[other] for other in near)]).strip()
        return _joined(self.templates, self.names[index], description)


def _joined(templates: Templates, name: str, description: str) -> str:
    if description:
        return fill(templates.entity, name=name, description=description)
    return fill(templates.bare_entity, name=name)
