"""Columns of ids as numbers, whole files at a time, through pyarrow (extra `data`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from pmd.datasets.lines import CUT, open_bytes
from pmd.datasets.triples import Indexed, Vocabulary
from pmd.serving.known import IntArray

ROLES = ("head", "relation", "tail")
UNKNOWN = -1


def read_files(files: Mapping[str, Path], vocabulary: Vocabulary) -> Indexed | None:
    """Tab-separated triples, those with unknown ids left out and counted; None if a line is not as it should be."""
    tables = {}
    for split, path in files.items():
        table = _read_tsv(path)
        if table is None:
            return None
        tables[split] = table
    found = index_tables(tables, vocabulary)
    if not all(key.strip() for part in (found.entities, found.relations) for key in part):
        return None
    whole = {split: rows[(rows != UNKNOWN).all(axis=1)] for split, rows in found.splits.items()}
    skipped = sum(len(found.splits[split]) - len(whole[split]) for split in whole)
    return Indexed(found.entities, found.relations, whole, skipped)


def index_tables(tables: Mapping[str, pa.Table], vocabulary: Vocabulary) -> Indexed:
    """Numbers of the string columns head, relation, tail of each split; -1 where an id is not in the vocabulary."""
    entities = _ids(vocabulary.entities, (table[role] for table in tables.values() for role in ("head", "tail")))
    relations = _ids(vocabulary.relations, (table["relation"] for table in tables.values()))
    entity_set, relation_set = pa.array(entities, pa.string()), pa.array(relations, pa.string())
    splits: dict[str, IntArray] = {}
    for split, table in tables.items():
        rows = np.empty((len(table), 3), dtype=np.int64)
        for place, role in enumerate(ROLES):
            rows[:, place] = _numbers(table[role], relation_set if role == "relation" else entity_set)
        splits[split] = rows
    return Indexed(entities, relations, splits)


def _read_tsv(path: Path) -> pa.Table | None:
    try:
        with open_bytes(path) as file:
            return csv.read_csv(
                file,
                read_options=csv.ReadOptions(column_names=list(ROLES)),
                parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
                convert_options=csv.ConvertOptions(column_types={role: pa.string() for role in ROLES}),
            )
    except (pa.ArrowInvalid, *CUT):  # an empty file as well: the pass by line says what is wrong with it
        return None


def _ids(known: Sequence[str] | None, columns: Iterable[pa.ChunkedArray]) -> list[str]:
    """The known ids, or all of the columns' distinct ids, sorted."""
    if known is not None:
        return list(known)
    chunks = [chunk for column in columns for chunk in column.chunks]
    return sorted(pc.unique(pa.chunked_array(chunks, pa.string())).to_pylist())


def _numbers(column: pa.ChunkedArray, ids: pa.Array) -> IntArray:
    return pc.fill_null(pc.index_in(column, value_set=ids), UNKNOWN).to_numpy()
