"""What a bundle knows about its graph: rows of text, vectors, known answers and neighbours, as one value.

A `Tables` is never changed; what is added or removed is laid over it by `pmd.serving.snapshot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmd.serving.errors import BundleError
from pmd.serving.known import SPLIT_NAMES, IntArray, KnownAnswers
from pmd.serving.neighbours import NeighbourGraph
from pmd.serving.rows import EntityRow, RelationRow, column
from pmd.serving.vectors import VectorTable


@dataclass(frozen=True)
class Tables:
    """The graph of a bundle: E entities and R relations, in the order of their indices."""

    entities: Sequence[EntityRow]
    relations: Sequence[RelationRow]
    vectors: VectorTable
    known: KnownAnswers
    graph: NeighbourGraph

    def check(self, what: str) -> None:
        """Raise BundleError unless all parts agree in their counts and every index is in range."""
        both: tuple[tuple[Sequence[tuple[str, ...]], str], ...] = (
            (self.entities, "entity"),
            (self.relations, "relation"),
        )
        for rows, kind in both:
            _check_ids(column(rows, 0), kind, what)
        entities, relations = len(self.entities), len(self.relations)
        _check_vectors(self.vectors, entities, what)
        if (self.known.num_entities, self.known.num_relations) != (entities, relations):
            raise BundleError(
                f"{what}: known answers are of {self.known.num_entities} entities and {self.known.num_relations} "
                f"relations, the tables have {entities} and {relations}"
            )
        _check_known(self.known, what)
        _check_graph(self.graph, entities, what)


def _check_ids(ids: Sequence[str], kind: str, what: str) -> None:
    if not ids:
        raise BundleError(f"{what} has no {kind}; at least one is needed")
    distinct = set(ids)
    if len(distinct) == len(ids) and "" not in distinct:
        return
    seen: set[str] = set()
    for number, key in enumerate(ids, start=1):
        if not key or key in seen:
            problem = f"{kind} id {key!r} is there twice" if key else f"an {kind} id is empty"
            raise BundleError(f"{what}: {problem} (row {number})")
        seen.add(key)


def _check_vectors(vectors: VectorTable, entities: int, what: str) -> None:
    values, scales = vectors.values, vectors.scales
    if values.ndim != 2 or len(values) != entities:
        raise BundleError(f"{what}: entity vectors have shape {values.shape}, expected ({entities}, width)")
    wanted = np.float32 if scales is None else np.int8
    if values.dtype != wanted:
        raise BundleError(f"{what}: entity vectors are {values.dtype}, expected {np.dtype(wanted)}")
    if scales is None:
        return
    _check_array(scales, np.float32, entities, "scales of the entity vectors", what)
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise BundleError(f"{what}: a scale of the entity vectors is not a positive number")


def _check_known(known: KnownAnswers, what: str) -> None:
    count, answers = len(known.keys), len(known.answers)
    _check_array(known.keys, np.int64, count, "keys of the known answers", what)
    _check_csr(known.offsets, known.answers, count, known.num_entities, "known answers", what)
    _check_array(known.splits, np.uint8, answers, "splits of the known answers", what)
    if count and not (known.keys[0] >= 0 and known.keys[-1] < 2 * known.num_relations * known.num_entities):
        raise BundleError(f"{what}: a key of the known answers is out of range")
    if (np.diff(known.keys) <= 0).any():
        raise BundleError(f"{what}: the keys of the known answers do not rise")
    if (known.splits >= len(SPLIT_NAMES)).any():
        raise BundleError(f"{what}: a split of the known answers is not one of 0 to {len(SPLIT_NAMES) - 1}")


def _check_graph(graph: NeighbourGraph, entities: int, what: str) -> None:
    _check_csr(graph.offsets, graph.targets, entities, entities, "neighbour graph", what)


def _check_csr(offsets: IntArray, values: IntArray, rows: int, limit: int, part: str, what: str) -> None:
    """Raise BundleError unless offsets (rows + 1,) cut `values` into rows that rise within [0, limit)."""
    _check_array(offsets, np.int64, rows + 1, f"offsets of the {part}", what)
    _check_array(values, np.int32, len(values), f"values of the {part}", what)
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        raise BundleError(f"{what}: the offsets of the {part} do not rise from 0 to {len(values)}")
    if len(values) and not (values.min() >= 0 and values.max() < limit):
        raise BundleError(f"{what}: an entity in the {part} is out of range, expected 0 to {limit - 1}")
    rises = np.diff(values, prepend=-1) > 0
    rises[offsets[:-1][offsets[:-1] < len(values)]] = True  # the first of a row may be anything
    if not rises.all():
        raise BundleError(f"{what}: the entities of a row of the {part} do not rise")


def _check_array(array: NDArray[Any], dtype: type[np.generic], count: int, part: str, what: str) -> None:
    if array.dtype != dtype or array.shape != (count,):
        raise BundleError(
            f"{what}: {part} are {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} ({count},)"
        )
