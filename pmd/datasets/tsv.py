"""The contract's dataset folder: entities.tsv, relations.tsv, train.tsv, valid.tsv, test.tsv, plain, .gz or .xz.

Tab-separated UTF-8 without header, quoting or escapes. Entities have an id, a name and a description; relations an
id and a text. Names and descriptions, relations.tsv, valid.tsv and test.tsv may be absent.
"""

from __future__ import annotations

from pathlib import Path

from pmd.datasets.lines import find, lines
from pmd.datasets.material import Material, Table, TableBuilder
from pmd.datasets.triples import Indexed, Vocabulary, read_triples
from pmd.datasets.writing import id_rows, refuse_control_characters, write_lines
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph
from pmd.serving.known import SPLIT_NAMES

LOOKED_FOR = "entities.tsv and train.tsv"


def matches(path: Path) -> bool:
    """Whether a folder is laid out like this."""
    return find(path, "entities.tsv", "relations.tsv") is not None


def read(folder: Path, *, skip_unknown: bool = False) -> Material:
    """Read the folder. Raises DatasetError naming the file and line at fault."""
    listed = _needed(folder, "entities.tsv")
    entities = read_table(listed, ("an id", "a name", "a description"))
    if not entities.ids:
        raise DatasetError(f"{listed}:1: the file is empty; it must list every entity")
    relation_file = find(folder, "relations.tsv")
    relations = read_table(relation_file, ("an id", "a text")) if relation_file else Table()
    _needed(folder, "train.tsv")
    files = {split: path for split in SPLIT_NAMES if (path := find(folder, f"{split}.tsv"))}
    vocabulary = Vocabulary(entities.ids, relations.ids or None)
    found = read_triples(files, vocabulary, skip_unknown=skip_unknown)
    check_training(files["train"], found)
    if not relations.ids:
        relations = Table.bare(found.relations)
    return Material(folder.resolve().name, entities, relations, found.splits, found.skipped)


def read_table(path: Path, columns: tuple[str, ...]) -> Table:
    """Ids with texts, as many columns as are named, all but the first of which a line may leave out.

    Raises DatasetError naming file and line.
    """
    builder = TableBuilder(lambda number: f"{path}:{number}")
    for number, line in lines(path):
        fields = line.split("\t")
        if len(fields) > len(columns):
            raise DatasetError(
                f"{path}:{number}: {len(fields)} columns, expected at most {len(columns)} ({', '.join(columns)}); "
                f"a tab inside a text must be replaced by a space"
            )
        builder.add(number, *(*fields, "", "")[:3])
    return builder.table


def check_training(path: Path, found: Indexed) -> None:
    """Raise DatasetError if the training split has no triples."""
    if not len(found.splits["train"]):
        raise DatasetError(f"{path}:1: the file has no triples; there is nothing to train on")


def write(graph: KnowledgeGraph, folder: Path, *, suffix: str = "") -> None:
    """Write the graph into an existing folder; `suffix` ".gz" or ".xz" compresses every file.

    Raises DatasetError if a text has a tab or line break: this layout cannot hold it.
    """
    refuse_control_characters(graph, "TSV")
    entities = zip(graph.entity_ids, graph.names, graph.descriptions, strict=True)
    write_lines(folder / f"entities.tsv{suffix}", entities)
    relations = zip(graph.relation_ids, graph.relation_texts, strict=True)
    write_lines(folder / f"relations.tsv{suffix}", relations)
    for split in SPLIT_NAMES:
        write_lines(folder / f"{split}.tsv{suffix}", id_rows(graph, split))


def _needed(folder: Path, name: str) -> Path:
    path = find(folder, name)
    if path is None:
        raise DatasetError(f"{folder} has no {name} (nor {name}.gz, {name}.xz); it is not a dataset folder")
    return path
