"""Read a dataset folder: entities.tsv, relations.tsv, train.tsv, valid.tsv, test.tsv, plain, .gz or .xz."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph, empty_triples
from pmd.serving.known import IntArray

OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}


def load_graph(source: str) -> KnowledgeGraph:
    """The graph of a shipped dataset (`umls`) or of a dataset folder.

    Raises DatasetError naming the file and line at fault.
    """
    folder = Path(source)
    if not folder.is_dir():
        shipped = shipped_datasets()
        if source not in shipped:
            raise DatasetError(
                f"no dataset folder {source}, and no shipped dataset of that name ({', '.join(shipped)})"
            )
        folder = shipped[source]
    return read_folder(folder)


def shipped_datasets() -> dict[str, Path]:
    """Datasets that come with the package, by name."""
    root = Path(str(resources.files("pmd"))) / "data"
    return {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir()}


def read_folder(folder: Path) -> KnowledgeGraph:
    """Read one dataset folder. Raises DatasetError naming the file and line at fault."""
    entities = _texts(folder, "entities", required=True)
    entity_index = {entity: index for index, entity in enumerate(entities)}
    relations = _texts(folder, "relations", required=False) or _relations_used(folder)
    relation_index = {relation: index for index, relation in enumerate(relations)}
    splits = {
        split: _triples(folder, split, entity_index, relation_index, required=split == "train")
        for split in ("train", "valid", "test")
    }
    return KnowledgeGraph(
        name=folder.resolve().name,
        entity_ids=tuple(entities),
        names=tuple(name for name, _ in entities.values()),
        descriptions=tuple(description for _, description in entities.values()),
        relation_ids=tuple(relations),
        relation_texts=tuple(text for text, _ in relations.values()),
        **splits,
    )


def _texts(folder: Path, stem: str, *, required: bool) -> dict[str, tuple[str, str]]:
    """Texts by id: (name or text, description); an absent name is the id in words."""
    table: dict[str, tuple[str, str]] = {}
    for where, fields in _rows(folder, stem, required=required):
        if len(fields) > 3 or not fields[0]:
            raise DatasetError(f"{where}: {len(fields)} columns, expected an id, a name and perhaps a description")
        key, name, description = (*fields, "", "")[:3]
        if key in table:
            raise DatasetError(f"{where}: id {key!r} stands here a second time; every id needs one line")
        table[key] = (name or in_words(key), description)
    if required and not table:
        raise DatasetError(f"{folder / stem}.tsv is empty; it must list every entity")
    return table


def in_words(identifier: str) -> str:
    """An id as words, for graphs without texts: underscores become spaces."""
    return identifier.replace("_", " ").strip() or identifier


def _relations_used(folder: Path) -> dict[str, tuple[str, str]]:
    used = {fields[1]: None for _, fields in _rows(folder, "train", required=True) if len(fields) == 3}
    return {relation: (in_words(relation), "") for relation in used}


def _triples(
    folder: Path, split: str, entities: Mapping[str, int], relations: Mapping[str, int], *, required: bool
) -> IntArray:
    rows = []
    for where, fields in _rows(folder, split, required=required):
        if len(fields) != 3:
            raise DatasetError(f"{where}: {len(fields)} columns, expected head, relation and tail")
        head, relation, tail = fields
        for value, known, file in (
            (head, entities, "entities"),
            (relation, relations, "relations"),
            (tail, entities, "entities"),
        ):
            if value not in known:
                raise DatasetError(f"{where}: {value!r} is not in {file}.tsv; add it there or drop the triple")
        rows.append((entities[head], relations[relation], entities[tail]))
    if required and not rows:
        raise DatasetError(f"{folder / split}.tsv has no triples; there is nothing to train on")
    return np.array(rows, dtype=np.int64) if rows else empty_triples()


def _rows(folder: Path, stem: str, *, required: bool) -> Iterator[tuple[str, list[str]]]:
    """("file:line", fields) of every line that is not blank."""
    path = _find(folder, stem, required=required)
    if path is None:
        return
    try:
        with OPENERS[path.suffix if path.suffix != ".tsv" else ""](path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DatasetError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file") from error
                if line.strip():
                    yield f"{path}:{number}", line.split("\t")
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is cut short or not compressed as its name says: {error}") from error


def _find(folder: Path, stem: str, *, required: bool) -> Path | None:
    for suffix in OPENERS:
        path = folder / f"{stem}.tsv{suffix}"
        if path.is_file():
            return path
    if required:
        raise DatasetError(f"{folder} has no {stem}.tsv (nor .tsv.gz, .tsv.xz); it is not a dataset folder")
    return None
