"""CSV and Parquet: triples in three columns, and perhaps tables of entities and relations beside them.

One file, or a folder of train, valid (or dev) and test. Columns go by their headings, head, relation and tail or
one of their usual other names; where there are none, by their order. `entities` has id, name, description;
`relations` has id, text. A single file names no splits. Needs pyarrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pmd.datasets.lines import find, stem_of, suffix_of
from pmd.datasets.material import WHOLE, Material, Table, TableBuilder
from pmd.datasets.triples import Vocabulary, unknown_id
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph
from pmd.serving.extras import require
from pmd.serving.known import SPLIT_NAMES, IntArray

if TYPE_CHECKING:
    import pyarrow as pa

    from pmd.datasets.frames import Frame

LOOKED_FOR = "train.csv or train.parquet, or one .csv or .parquet file"
SUFFIXES = (".csv", ".parquet")
HEADINGS = {
    "head": ("head", "head_id", "subject", "source", "from", "h", "s"),
    "relation": ("relation", "relation_id", "predicate", "edge", "r", "p"),
    "tail": ("tail", "tail_id", "object", "target", "to", "t", "o"),
}
ENTITY_HEADINGS = {
    "id": ("id", "entity", "entity_id"),
    "name": ("name", "label", "title"),
    "description": ("description", "desc", "entity_desc", "comment"),
}
RELATION_HEADINGS = {"id": ("id", "relation", "relation_id"), "text": ("text", "name", "label")}


def matches(path: Path) -> bool:
    """Whether a path is such a file or folder."""
    return _beside(path, "train") is not None if path.is_dir() else suffix_of(path) in SUFFIXES


def read(path: Path, *, skip_unknown: bool = False) -> Material:
    """Read a file or folder. Raises DatasetError naming file and line (of Parquet, the row)."""
    require("data", "pyarrow")
    from pmd.datasets.bulk import index_tables
    from pmd.datasets.frames import read_frame

    folder = path if path.is_dir() else path.parent
    entities = _table(_beside(folder, "entities"), ENTITY_HEADINGS)
    relations = _table(_beside(folder, "relations"), RELATION_HEADINGS)
    frames = {split: read_frame(file, HEADINGS, 3) for split, file in _split_files(path).items()}
    vocabulary = Vocabulary(
        entities.ids if entities else None, relations.ids if relations else None, "entities", "relations"
    )
    found = index_tables({split: frame.table for split, frame in frames.items()}, vocabulary)
    splits, skipped = _known_rows(frames, found.splits, vocabulary, skip_unknown)
    first = next(iter(frames))
    if not len(splits[first]):
        raise DatasetError(f"{frames[first].path}:1: the file has no triples; there is nothing to train on")
    return Material(
        path.resolve().name if path.is_dir() else stem_of(path),
        entities or Table.bare(found.entities),
        relations or Table.bare(found.relations),
        splits,
        skipped,
    )


def write(graph: KnowledgeGraph, folder: Path, *, suffix: str) -> None:
    """Write five files into an existing folder, ".csv" or ".parquet"."""
    require("data", "pyarrow")
    import pyarrow as pa

    texts = {"id": graph.entity_ids, "name": graph.names, "description": graph.descriptions}
    _save(
        pa.table({key: pa.array(column, pa.string()) for key, column in texts.items()}),
        folder / f"entities{suffix}",
    )
    texts = {"id": graph.relation_ids, "text": graph.relation_texts}
    _save(
        pa.table({key: pa.array(column, pa.string()) for key, column in texts.items()}),
        folder / f"relations{suffix}",
    )
    entities, relations = pa.array(graph.entity_ids, pa.string()), pa.array(graph.relation_ids, pa.string())
    for split in SPLIT_NAMES:
        heads, kinds, tails = (pa.array(np.ascontiguousarray(column)) for column in graph.split(split).T)
        columns = {"head": entities.take(heads), "relation": relations.take(kinds), "tail": entities.take(tails)}
        _save(pa.table(columns), folder / f"{split}{suffix}")


def _save(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq
    from pyarrow import csv

    with open(path, "wb") as file:  # pyarrow itself opens no path that is not UTF-8
        if path.suffix == ".parquet":
            pq.write_table(table, file)
        else:
            csv.write_csv(table, file)


def _beside(folder: Path, stem: str) -> Path | None:
    return find(folder, *(stem + suffix for suffix in SUFFIXES))


def _split_files(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        return {WHOLE: path}
    found = {split: _beside(path, split) for split in SPLIT_NAMES}
    found["valid"] = found["valid"] or _beside(path, "dev")
    return {split: file for split, file in found.items() if file}


def _table(path: Path | None, headings: Mapping[str, tuple[str, ...]]) -> Table | None:
    """Ids with texts; None where there is no such file."""
    if path is None:
        return None
    from pmd.datasets.frames import read_frame

    frame = read_frame(path, headings, 1)
    builder = TableBuilder(frame.place)
    columns = [frame.texts(role) for role in headings]
    for number, row in enumerate(zip(*columns, strict=True)):
        builder.add(number, *row)
    if not builder.table.ids:
        raise DatasetError(f"{path}:1: the table has no rows; list every id, or remove the file")
    return builder.table


def _known_rows(
    frames: dict[str, Frame], splits: dict[str, IntArray], vocabulary: Vocabulary, skip_unknown: bool
) -> tuple[dict[str, IntArray], int]:
    """Triples without those that name unknown ids, and the number of those. Raises DatasetError at the first."""
    kept, skipped = {}, 0
    for split, rows in splits.items():
        unknown = (rows < 0).any(axis=1)
        if unknown.any() and not skip_unknown:
            row = int(unknown.argmax())
            triple = [str(frames[split].table[role][row]) for role in HEADINGS]
            listed = {key: number for number, key in enumerate(vocabulary.entities or ())}
            raise unknown_id(frames[split].place(row), triple, listed, vocabulary)
        kept[split] = rows[~unknown]
        skipped += int(unknown.sum())
    return kept, skipped
