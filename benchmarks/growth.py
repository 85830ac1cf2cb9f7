"""How latency grows with the number of entities: real questions, tables of random unit vectors of rising size.

A graph of a million entities is not at hand for most bundles. Search does the same work whatever the vectors are,
so they may be random, as long as the questions, the query tower and the kind of table are the bundle's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmd.benchmarks.latency import laps_ns
from pmd.benchmarks.questions import TOP
from pmd.serving.bundle import QUERY, Bundle
from pmd.serving.encoder import TowerEncoder
from pmd.serving.errors import BundleError
from pmd.serving.known import SPLIT_NAMES, directed
from pmd.serving.search import Search, Wish
from pmd.serving.texts import TextBuilder
from pmd.serving.vectors import INT8_MAX, VectorTable

SIZES = (1_000, 10_000, 100_000, 1_000_000)
LAPS, WARMUP = 40, 5
UNIT = 100_000
"""Entities that `ms_per_100k` is the time of."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, a table may take this much; larger ones are left out."""
COLUMNS_AT_ONCE = 50_000  # 50,000 x 384 float32 are 77 MB


def growth(bundle: Bundle, *, split: str, threads: int, free_bytes: int) -> dict[str, Any]:
    """Median milliseconds from text to the ten best of 1 k to 1 M entities, and the line through them.

    The row's `growth`: `points` of `entities` and `query_ms`, `fit`, `synthetic`, `dtype` of the tables, and
    `left_out`, sizes whose table would take more than half of `free_bytes`. Raises BundleError for a split without
    triples.
    """
    encoder = TowerEncoder.load(bundle, QUERY, threads=threads, cached_texts=0)
    texts = _texts(bundle, split)
    quantised = bundle.tables.vectors.scales is not None
    width = bundle.tables.vectors.width
    sizes = [size for size in SIZES if size * width * (1 if quantised else 4) <= MEMORY_SHARE * free_bytes]
    points = []
    for size in sizes:
        search = Search(synthetic(size, width, quantised=quantised), threads=threads)
        points.append({"entities": size, "query_ms": _median_ms(partial(_ask, encoder, search), texts)})
    return {
        "points": points,
        "fit": fit(points),
        "synthetic": True,
        "dtype": "int8" if quantised else "float32",
        "left_out": [size for size in SIZES if size not in sizes],
    }


def synthetic(entities: int, width: int, *, quantised: bool, seed: int = 0) -> VectorTable:
    """Random vectors of unit length, as a bundle keeps them: int8 (E, D) with scales, or float32 (E, D)."""
    rng = np.random.default_rng(seed)
    columns = np.empty((width, entities), np.int8 if quantised else np.float32)
    lengths = np.empty(entities, np.float32)
    for first in range(0, entities, COLUMNS_AT_ONCE):
        part = columns[:, first : first + COLUMNS_AT_ONCE]
        if quantised:
            part[:] = rng.integers(-INT8_MAX, INT8_MAX + 1, part.shape, dtype=np.int8)
        else:
            part[:] = rng.random(part.shape, dtype=np.float32) - np.float32(0.5)
        block = part.astype(np.float32, copy=False)
        lengths[first : first + COLUMNS_AT_ONCE] = np.sqrt(np.einsum("de,de->e", block, block))
    if quantised:
        return VectorTable(columns.T, 1 / lengths)
    columns /= lengths
    return VectorTable(columns.T)


def fit(points: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """The line through (entities, query_ms) that is least off in proportion; None for less than two points.

    `ms` without any entity, `ms_per_100k`, and `worst_percent`, how far the line is from a point at most. In
    proportion, because otherwise the largest table alone would say where the line begins.
    """
    if len(points) < 2:
        return None
    times = np.array([point["query_ms"] for point in points])
    terms = np.array([[1.0, point["entities"] / UNIT] for point in points])
    (start, slope), *_ = np.linalg.lstsq(terms / times[:, None], np.ones(len(times)), rcond=None)
    off = np.abs(terms @ [start, slope] / times - 1)
    return {"ms": float(start), "ms_per_100k": float(slope), "worst_percent": float(100 * off.max())}


def _ask(encoder: TowerEncoder, search: Search, text: tuple[str, str]) -> object:
    return search.best(encoder([text]), [Wish(TOP)])


def _median_ms(ask: Callable[[tuple[str, str]], object], texts: Sequence[tuple[str, str]]) -> float:
    laps: NDArray[np.int64] = laps_ns(ask, texts, warmup=WARMUP)
    return float(np.median(laps) / 1e6)


def _texts(bundle: Bundle, split: str) -> list[tuple[str, str]]:
    """Texts of some questions of a split, in both directions, the same every time."""
    tables = bundle.tables
    triples = tables.known.triples(SPLIT_NAMES.index(split))
    if not len(triples):
        raise BundleError(f"{bundle.path} holds no {split} triples to ask about; choose another --split")
    builder = TextBuilder(
        [row.name for row in tables.entities],
        [row.description for row in tables.entities],
        [row.text for row in tables.relations],
        bundle.templates,
        tables.graph,
        tables.known,
    )
    both = directed(triples, tables.known.num_relations)
    chosen = np.resize(np.random.default_rng(0).permutation(len(both)), LAPS)
    return [builder.query(int(head), int(relation)) for head, relation in both[chosen, :2]]
