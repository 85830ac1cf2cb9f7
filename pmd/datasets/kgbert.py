"""KG-BERT's folder: entity2text.txt, entity2textlong.txt, relation2text.txt, train.tsv, dev.tsv, test.tsv.

Each text file has an id, a tab and a text; entities.txt and relations.txt list the ids alone (written for KG-BERT,
not needed here). Layout as in github.com/yao8839836/kg-bert, folder data/. Its WN18RR has no entity2textlong.txt:
there every text of entity2text.txt is "name, gloss", and is taken apart at the first ", ".
"""

from __future__ import annotations

from pathlib import Path

from pmd.datasets.lines import find
from pmd.datasets.material import Material, Table
from pmd.datasets.triples import Vocabulary, read_triples
from pmd.datasets.tsv import check_training, read_table
from pmd.datasets.writing import id_rows, refuse_control_characters, write_lines
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph

LOOKED_FOR = "entity2text.txt and train.tsv"
ENTITIES, LONG, RELATIONS = "entity2text.txt", "entity2textlong.txt", "relation2text.txt"
SPLIT_FILES = {"train": ("train.tsv",), "valid": ("dev.tsv", "valid.tsv"), "test": ("test.tsv",)}
SEPARATOR = ", "


def matches(path: Path) -> bool:
    """Whether a folder is laid out like this."""
    return find(path, ENTITIES) is not None


def read(folder: Path, *, skip_unknown: bool = False) -> Material:
    """Read the folder. Raises DatasetError naming the file and line at fault."""
    listed, relation_file = find(folder, ENTITIES), find(folder, RELATIONS)
    files = {split: path for split, names in SPLIT_FILES.items() if (path := find(folder, *names))}
    if listed is None or "train" not in files:
        raise DatasetError(
            f"{folder} has no {ENTITIES if listed is None else 'train.tsv'}; KG-BERT's layout needs it"
        )
    entities = _with_descriptions(read_table(listed, ("an id", "a text")), find(folder, LONG))
    if not entities.ids:
        raise DatasetError(f"{listed}:1: the file is empty; it must list every entity")
    relations = read_table(relation_file, ("an id", "a text")) if relation_file else Table()
    vocabulary = Vocabulary(entities.ids, relations.ids or None, ENTITIES, RELATIONS)
    found = read_triples(files, vocabulary, skip_unknown=skip_unknown)
    check_training(files["train"], found)
    if not relations.ids:
        relations = Table.bare(found.relations)
    return Material(folder.resolve().name, entities, relations, found.splits, found.skipped)


def write(graph: KnowledgeGraph, folder: Path) -> None:
    """Write the graph into an existing folder. Raises DatasetError if a text has a tab or line break."""
    refuse_control_characters(graph, "kgbert")
    write_lines(folder / "entities.txt", ((key,) for key in graph.entity_ids))
    write_lines(folder / "relations.txt", ((key,) for key in graph.relation_ids))
    write_lines(folder / ENTITIES, zip(graph.entity_ids, graph.names, strict=True))
    write_lines(folder / LONG, zip(graph.entity_ids, graph.descriptions, strict=True))
    write_lines(folder / RELATIONS, zip(graph.relation_ids, graph.relation_texts, strict=True))
    for split, (name, *_) in SPLIT_FILES.items():
        write_lines(folder / name, id_rows(graph, split))


def _with_descriptions(entities: Table, long_file: Path | None) -> Table:
    if long_file is None:
        return _taken_apart(entities)
    longer = read_table(long_file, ("an id", "a text"))
    described = dict(zip(longer.ids, longer.names, strict=True))
    return Table(entities.ids, entities.names, [described.get(key, "") for key in entities.ids])


def _taken_apart(entities: Table) -> Table:
    """Name and gloss apart where every text has both, otherwise the texts as names."""
    if not all(SEPARATOR in text for text in entities.names):
        return entities
    halves = [text.split(SEPARATOR, 1) for text in entities.names]
    return Table(entities.ids, [name for name, _ in halves], [gloss for _, gloss in halves])
