"""Three bare columns, head, relation and tail with tabs between them: one file, or a folder of splits.

No file lists entities or relations; ids are their texts, underscores read as spaces. A single file names no splits.
"""

from __future__ import annotations

from pathlib import Path

from pmd.datasets.lines import find, stem_of, suffix_of
from pmd.datasets.material import WHOLE, Material, Table, in_words
from pmd.datasets.triples import Vocabulary, read_triples
from pmd.datasets.writing import id_rows, refuse_control_characters, write_lines
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph
from pmd.serving.known import SPLIT_NAMES

LOOKED_FOR = "train.tsv or train.txt, or one .tsv or .txt file, of three columns"
SUFFIXES = (".tsv", ".txt")
NAMES = {split: tuple(f"{split}{suffix}" for suffix in SUFFIXES) for split in SPLIT_NAMES}
NAMES["valid"] += tuple(f"dev{suffix}" for suffix in SUFFIXES)


def matches(path: Path) -> bool:
    """Whether a path is such a file or folder."""
    return find(path, *NAMES["train"]) is not None if path.is_dir() else suffix_of(path) in SUFFIXES


def read(path: Path, *, skip_unknown: bool = False) -> Material:
    """Read a file or folder; no id can be unknown here. Raises DatasetError naming file and line."""
    files = {WHOLE: path}
    if path.is_dir():
        files = {split: file for split, names in NAMES.items() if (file := find(path, *names))}
    found = read_triples(files, Vocabulary(), skip_unknown=skip_unknown)
    first = next(iter(files))
    if not len(found.splits[first]):
        raise DatasetError(f"{files[first]}:1: the file has no triples; there is nothing to train on")
    name = path.resolve().name if path.is_dir() else stem_of(path)
    return Material(name, Table.bare(found.entities), Table.bare(found.relations), found.splits, found.skipped)


def write(graph: KnowledgeGraph, folder: Path, *, drop_texts: bool = False) -> None:
    """Write train.tsv, valid.tsv and test.tsv into an existing folder.

    Raises DatasetError if texts would be lost (more than ids say, or ids without triples), unless
    `drop_texts`.
    """
    refuse_control_characters(graph, "bare")
    if not drop_texts and (lost := _lost(graph)):
        raise DatasetError(f"{lost}, which bare columns cannot hold; give --drop-texts to leave that out")
    for split in SPLIT_NAMES:
        write_lines(folder / f"{split}.tsv", id_rows(graph, split))


def _lost(graph: KnowledgeGraph) -> str:
    """What bare columns would lose, in words; "" if nothing."""
    named = list(zip(graph.entity_ids, graph.names, strict=True))
    named += zip(graph.relation_ids, graph.relation_texts, strict=True)
    texts = sum(name != in_words(key) for key, name in named) + sum(map(bool, graph.descriptions))
    if texts:
        return f"{graph.name} has {texts:,} names and descriptions beyond the ids"
    used = {int(number) for split in SPLIT_NAMES for number in graph.split(split)[:, ::2].ravel()}
    if len(used) < graph.num_entities:
        return f"{graph.name} has {graph.num_entities - len(used):,} entities without a triple"
    joined = {int(number) for split in SPLIT_NAMES for number in graph.split(split)[:, 1]}
    if len(joined) < graph.num_relations:
        return f"{graph.name} has {graph.num_relations - len(joined):,} relations without a triple"
    return ""
