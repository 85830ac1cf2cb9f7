"""RDF as N-Triples or Turtle, through rdflib: IRIs are ids, literals are texts.

One file, or a folder of train, valid (or dev) and test with any other .nt or .ttl file holding texts. A name is an
rdfs:label, a description a schema:description or rdfs:comment; text without a language comes before English, and
English before others. An IRI without a label is named by its last part. Other literals are left out, and so are
blank nodes, which have no id that lasts. What is declared an rdf:Property (or OWL's kinds of it) is a relation.

Ids that are not IRIs are written below `urn:pmd:entity:` and `urn:pmd:relation:` and read back as they were; so are
relations that have an entity's id.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, unquote

from pmd.datasets.lines import find, stem_of, suffix_of
from pmd.datasets.material import WHOLE, Material
from pmd.datasets.writing import id_rows, text_file
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph
from pmd.serving.extras import require
from pmd.serving.known import SPLIT_NAMES

if TYPE_CHECKING:
    from pmd.datasets.rdfgraph import Statements

log = logging.getLogger(__name__)

LOOKED_FOR = "train.nt or train.ttl, other .nt or .ttl files, or one such file"
SUFFIXES = (".nt", ".ttl")
ENTITY, RELATION = "urn:pmd:entity:", "urn:pmd:relation:"
RELATIVE = "relative:/"  # what IRIs are relative to in a file that does not say
IRI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\x00-\x20<>\"{}|^`\\]+")
RDFS = "http://www.w3.org/2000/01/rdf-schema#"
RDF_TYPE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#type"
RDF_PROPERTY = "http://www.w3.org/1999/02/22-rdf-syntax-ns#Property"
DESCRIPTION = "https://schema.org/description"
ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
ESCAPED = re.compile(r'["\\\x00-\x1f\x7f\x85\u2028\u2029\ufeff]')


def matches(path: Path) -> bool:
    """Whether a path is such a file or folder."""
    return bool(_files(path)) if path.is_dir() else suffix_of(path) in SUFFIXES


def read(path: Path, *, skip_unknown: bool = False) -> Material:
    """Read a file or folder; no id can be unknown here. Raises DatasetError naming file and line."""
    require("data", "rdflib")
    from pmd.datasets.rdfgraph import Statements

    statements = Statements(identifier, RELATIVE)
    for split, file in _split_files(path):
        statements.read(file, split)
    splits = statements.triples()
    first = WHOLE if WHOLE in splits else "train"
    if first not in splits or not len(splits[first]):
        raise DatasetError(f"{path}: no statement links one IRI to another; there is nothing to train on")
    _tell_of(statements, path)
    name = path.resolve().name if path.is_dir() else stem_of(path)
    return Material(name, statements.entities(), statements.relations(), splits)


def identifier(iri: str) -> str:
    """The id of an IRI: the IRI itself, or the id that `iri_of` wrote as such, or a relative IRI."""
    for prefix in (ENTITY, RELATION):
        if iri.startswith(prefix):
            return unquote(iri[len(prefix) :])
    return iri.removeprefix(RELATIVE) or iri


def iri_of(key: str, prefix: str, taken: Container[str] = ()) -> str:
    """The IRI an id is written as, such that `identifier` gives the id back; `taken` ids get one of their own."""
    if IRI.fullmatch(key) and not key.startswith((ENTITY, RELATION, RELATIVE)) and key not in taken:
        return key
    return prefix + quote(key, safe="/:@!$&'()*+,;=~")


def write(graph: KnowledgeGraph, folder: Path, *, suffix: str) -> None:
    """Write texts, train, valid and test into an existing folder, as N-Triples (".nt") or Turtle (".ttl")."""
    entities = {key: iri_of(key, ENTITY) for key in graph.entity_ids}
    relations = {key: iri_of(key, RELATION, taken=entities) for key in graph.relation_ids}
    with text_file(folder / f"texts{suffix}") as file:
        if suffix == ".ttl":
            file.write(f"@prefix rdfs: <{RDFS}> .\n@prefix schema: <https://schema.org/> .\n\n")
        _write_texts(graph, entities, relations, file, short=suffix == ".ttl")
    for split in SPLIT_NAMES:
        with text_file(folder / f"{split}{suffix}") as file:
            for head, relation, tail in id_rows(graph, split):
                file.write(f"<{entities[head]}> <{relations[relation]}> <{entities[tail]}> .\n")


def _write_texts(
    graph: KnowledgeGraph, entities: dict[str, str], relations: dict[str, str], file: IO[str], *, short: bool
) -> None:
    label = "rdfs:label" if short else f"<{RDFS}label>"
    describe = "schema:description" if short else f"<{DESCRIPTION}>"
    for relation, text in zip(graph.relation_ids, graph.relation_texts, strict=True):
        file.write(f"<{relations[relation]}> <{RDF_TYPE}> <{RDF_PROPERTY}> .\n")
        file.write(f"<{relations[relation]}> {label} {_literal(text)} .\n")
    for key, name, description in zip(graph.entity_ids, graph.names, graph.descriptions, strict=True):
        file.write(f"<{entities[key]}> {label} {_literal(name)} .\n")
        if description:
            file.write(f"<{entities[key]}> {describe} {_literal(description)} .\n")


def _literal(text: str) -> str:
    return '"' + ESCAPED.sub(lambda found: ESCAPES.get(found[0], f"\\u{ord(found[0]):04X}"), text) + '"'


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and suffix_of(path) in SUFFIXES)


def _split_files(path: Path) -> Iterator[tuple[str | None, Path]]:
    """Files with the split that each holds, None for texts; those come first, so that they set the order of ids."""
    if not path.is_dir():
        yield WHOLE, path
        return
    names = {split: tuple(split + suffix for suffix in SUFFIXES) for split in SPLIT_NAMES}
    names["valid"] += tuple("dev" + suffix for suffix in SUFFIXES)
    splits = {split: file for split in SPLIT_NAMES if (file := find(path, *names[split]))}
    for file in _files(path):
        if file not in splits.values():
            yield (None if "train" in splits else WHOLE), file
    yield from splits.items()


def _tell_of(statements: Statements, path: Path) -> None:
    if statements.blank_nodes:
        log.warning("%s: %d statements with blank nodes left out", path, statements.blank_nodes)
