"""RDF statements sorted into links, names and descriptions as rdflib's parsers bring them."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rdflib import BNode, Graph, Literal, URIRef
from rdflib.exceptions import ParserError
from rdflib.namespace import OWL, RDF, RDFS, SDO
from rdflib.plugins.parsers.notation3 import BadSyntax
from rdflib.plugins.parsers.ntriples import W3CNTriplesParser
from rdflib.store import Store

from pmd.datasets.lines import lines, read_text, suffix_of
from pmd.datasets.material import Table, TableBuilder, in_words
from pmd.errors import DatasetError
from pmd.serving.known import IntArray

LABELS = (RDFS.label,)
DESCRIPTIONS = (SDO.description, URIRef("http://schema.org/description"), RDFS.comment)
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)
"""What rdflib's parsers raise, beside errors of their own, where a file ends within a statement and the like."""
PROPERTIES = {RDF.Property, OWL.ObjectProperty, OWL.DatatypeProperty, OWL.AnnotationProperty}


class Statements:
    """Links by split, and texts, of one or several files.

    identifier: the id of an IRI. base: what IRIs are relative to in a file that does not say.
    """

    def __init__(self, identifier: Callable[[str], str], base: str) -> None:
        self.blank_nodes = 0
        self._identifier, self._base = identifier, base
        self._subjects: dict[str, int] = {}  # every IRI that may be an entity, in order of first mention
        self._predicates: dict[str, int] = {}
        self._linked: set[str] = set()
        self._links: dict[str, array[int]] = {}
        self._texts: dict[str, dict[str, tuple[tuple[int, int], str]]] = {"name": {}, "description": {}}
        self._split: str | None = None
        self._file = Path()

    def read(self, path: Path, split: str | None) -> None:
        """Add a file's statements; `split` None: of texts alone. Raises DatasetError naming the file and line."""
        self._split, self._file = split, path
        if split is not None:
            self._links.setdefault(split, array("q"))
        if suffix_of(path) == ".nt":
            self._read_lines(path)
        else:
            self._read_turtle(path)

    def triple(self, subject: Any, predicate: Any, value: Any) -> None:
        """Take in one statement (called by rdflib's parsers)."""
        if isinstance(value, Literal):
            if isinstance(subject, URIRef):
                self._text(str(subject), predicate, value)
        elif isinstance(subject, BNode) or isinstance(value, BNode):
            self.blank_nodes += 1
        elif predicate == RDF.type and value in PROPERTIES:
            _number(self._predicates, str(subject))
        else:
            self._link(str(subject), str(predicate), str(value))

    def triples(self) -> dict[str, IntArray]:
        """Triples int64 (N, 3) by split."""
        place = {iri: number for number, iri in enumerate(self._entity_iris())}
        moved = np.array([place.get(iri, -1) for iri in self._subjects], dtype=np.int64)
        splits: dict[str, IntArray] = {}
        for split, flat in self._links.items():
            rows = np.array(flat, dtype=np.int64).reshape(-1, 3)
            splits[split] = np.stack([moved[rows[:, 0]], rows[:, 1], moved[rows[:, 2]]], axis=1)
        return splits

    def entities(self) -> Table:
        """Entities: all that a link joins, and what has texts without being a relation. Raises DatasetError."""
        return self._table(self._entity_iris())

    def relations(self) -> Table:
        """Relations: all predicates of links, and what is declared to be one. Raises DatasetError."""
        return self._table(list(self._predicates))

    def _entity_iris(self) -> list[str]:
        return [iri for iri in self._subjects if iri in self._linked or iri not in self._predicates]

    def _table(self, iris: list[str]) -> Table:
        names, descriptions = self._texts["name"], self._texts["description"]
        builder = TableBuilder(lambda number: f"{self._file.parent}: IRI {iris[number][:80]!r}")
        for number, iri in enumerate(iris):
            name = names[iri][1] if iri in names else self._last_part(iri)
            row = self._identifier(iri), name, descriptions[iri][1] if iri in descriptions else ""
            try:
                "".join(row).encode()
            except UnicodeEncodeError as error:
                raise DatasetError(
                    f"{self._file.parent}: IRI {iri[:80]!r} or its text has half a surrogate pair; mend the escape"
                ) from error
            builder.add(number, *row)
        return builder.table

    def _last_part(self, iri: str) -> str:
        """The name of an IRI without a label: what follows the last #, / or :, as words."""
        key = self._identifier(iri)
        if key != iri:
            return in_words(key)
        trimmed = key.rstrip("#/:")
        return in_words(trimmed[max(trimmed.rfind(mark) for mark in "#/:") + 1 :] or key)

    def _text(self, subject: str, predicate: Any, value: Literal) -> None:
        for kind, predicates in (("name", LABELS), ("description", DESCRIPTIONS)):
            if predicate in predicates:
                _number(self._subjects, subject)
                rank = (predicates.index(predicate), _language_rank(value.language))
                known = self._texts[kind].get(subject)
                if known is None or rank < known[0]:
                    self._texts[kind][subject] = (rank, str(value))

    def _link(self, subject: str, predicate: str, value: str) -> None:
        if self._split is None:
            raise DatasetError(
                f"{self._file}: links {subject[:80]!r} to {value[:80]!r}, but stands beside a train file "
                f"and so may hold texts alone; move its links into train"
            )
        self._linked.update((subject, value))
        head, tail = _number(self._subjects, subject), _number(self._subjects, value)
        self._links[self._split].extend((head, _number(self._predicates, predicate), tail))

    def _read_lines(self, path: Path) -> None:
        parser = W3CNTriplesParser(self)  # type: ignore[arg-type]  # a sink is whatever has `triple`
        for number, line in lines(path):
            parser.line = line
            try:
                parser.parseline()
            except (ParserError, *MALFORMED) as error:
                raise DatasetError(
                    f"{path}:{number}: not N-Triples ({_short(error)}); mend or drop the line"
                ) from error

    def _read_turtle(self, path: Path) -> None:
        graph = Graph(store=_Passing(self), bind_namespaces="none")
        text = read_text(path)
        try:
            graph.parse(data=text, format="turtle", publicID=self._base)
        except BadSyntax as error:
            line = min(error.lines + 1, max(text.count("\n"), 1))  # at the end of a file rdflib counts on
            raise DatasetError(f"{path}:{line}: not Turtle ({_short(error)}); mend the file") from error
        except MALFORMED as error:
            raise DatasetError(f"{path}: not Turtle ({_short(error)}); mend the file") from error


class _Passing(Store):
    """A store that keeps nothing and passes every statement on."""

    def __init__(self, statements: Statements) -> None:
        super().__init__()
        self._statements = statements

    def add(self, triple: Any, context: Any = None, quoted: bool = False) -> None:
        """Pass a statement on."""
        self._statements.triple(*triple)


def _number(numbering: dict[str, int], key: str) -> int:
    return numbering.setdefault(key, len(numbering))


def _language_rank(language: str | None) -> int:
    """Text without a language, then English, then the rest."""
    if not language:
        return 0
    return 1 if language.lower().split("-")[0] == "en" else 2


def _short(error: Exception) -> str:
    text = str(getattr(error, "_why", None) or error)
    return " ".join(text.split())[:160]
