"""The table of entity vectors, int8 or float32, memory-mapped, and scores against it that never vary.

A score is a cosine. Queries are rounded to a grid of 2^-26 (float32 tables too, as they are read), far below what
float32 keeps of a score, and the products are summed in float64. On that grid every product and every partial
sum of unit vectors is a whole number of grid steps below 2^53, so float64 holds it exactly and the order of
summation cannot matter: a query scores the same to the last bit alone or in a batch, whatever the chunk, the
thread count, the BLAS or the machine, and equal vectors always tie. Scoring every entity so costs 7 ms a query on
one core at 41,000 x 384; `pmd.serving.search` finds the best answers, with these very scores, in a tenth of it.

The table is kept a dimension after the other (Fortran order), in the file as in memory: that is how one query
meets all entities at the speed of memory.

Scoring keeps to the calling thread. numpy's BLAS would start a thread for every core it sees, whatever number of
threads the user asked for and whatever quota the container has; on two busy cores a batch took a hundred times as
long. So products are cut into tiles too small for OpenBLAS to share out, which costs a third of one thread's speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray, RankingError

GRID = 2.0**26
"""Grid steps in 1. Products are whole steps of 2^-52: exact while two vectors' lengths multiply to under 2."""
CHUNK_ROWS = 1024  # 1024 x 384 float64 are 3 MB: near the cache, and few enough turns of the loop
CACHE_LINE = 8  # float64; rows of a power of two bytes would all fall on the same few lines of the cache
UNIT_SLACK = 1e-3  # how much longer than 1 a vector may be that is called a unit vector
INT8_MAX = 127
TILE_QUERIES = (1, 8, 16)  # a batch is filled up to one of these, or to a multiple of the last
TILE_PRODUCTS = 65536 * 4  # OpenBLAS keeps a matrix product of up to this many multiplications on one thread
ROW_PRODUCTS = 2304 * 4 - 1  # and a product of one row with a matrix (its interface/gemm.c and interface/gemv.c)


@dataclass(frozen=True)
class VectorTable:
    """Unit vectors of E entities. values: (E, D) int8 or float32; scales: (E,) float32 where int8, else None."""

    values: FloatArray | IntArray
    scales: FloatArray | None = None

    @classmethod
    def quantised(cls, vectors: FloatArray) -> VectorTable:
        """The int8 table of float vectors (E, D): each row divided by its own largest value over 127."""
        vectors = np.asarray(vectors, dtype=np.float32)
        largest = np.abs(vectors).max(axis=1, initial=0.0)
        scales = np.where(largest > 0, largest / INT8_MAX, 1.0).astype(np.float32)
        values = np.rint(vectors / scales[:, None]).clip(-INT8_MAX, INT8_MAX)
        return cls(np.asfortranarray(values.astype(np.int8)), scales)

    def __len__(self) -> int:
        """E."""
        return len(self.values)

    @property
    def width(self) -> int:
        """D."""
        return int(self.values.shape[1])

    @cached_property
    def columns(self) -> FloatArray | IntArray:
        """The table as (D, E), a dimension after the other; a copy is made (once) of a table in C order."""
        return np.ascontiguousarray(self.values.T)  # type: ignore[return-value]  # numpy unites the two kinds

    @cached_property
    def longest(self) -> float:
        """What no vector's length exceeds, as stored: rounding to int8 may make a unit vector this much longer."""
        rounding = 0.0 if self.scales is None else float(self.scales.max(initial=0.0)) / 2
        return 1.0 + UNIT_SLACK + rounding * math.sqrt(self.width)

    def vectors(self) -> FloatArray:
        """Every vector as float32 (E, D)."""
        if self.scales is None:
            return np.array(self.values, dtype=np.float32)
        return self.values.astype(np.float32) * self.scales[:, None]

    def longer(self, *, chunk: int = CHUNK_ROWS) -> IntArray:
        """Entities whose vectors are longer than `longest`, int64: none in a table that is what it claims."""
        found = []
        for first in range(0, len(self), chunk):
            rows = slice(first, min(first + chunk, len(self)))
            block = self.columns[:, rows].astype(np.float32)
            lengths = np.sqrt(np.einsum("de,de->e", block, block))
            lengths = lengths if self.scales is None else lengths * self.scales[rows]
            found.append(first + np.flatnonzero(~(lengths <= self.longest)))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def scores(self, queries: FloatArray, *, chunk: int = CHUNK_ROWS, shared: bool = False) -> FloatArray:
        """Scores of query vectors (Q, D) against every entity, float32 (Q, E); `chunk` rows at a time.

        Beside the result it needs `chunk` x (D + Q) float64. shared: let numpy's BLAS share the products out
        between threads, as a tool may that has the machine to itself; the bits are the same. Raises RankingError
        if any score is not finite.
        """
        grid, out = on_grid(queries), np.empty((len(queries), len(self)), np.float32)
        buffer = np.empty((self.width, min(chunk, len(self)) + CACHE_LINE))
        for first in range(0, len(self), chunk):
            rows = slice(first, min(first + chunk, len(self)))
            block = self._load(self.columns[:, rows], buffer[:, : rows.stop - first])
            out[:, rows] = self._products(grid, block, rows, shared=shared)
        return _checked(out)

    def pair_scores(self, queries: FloatArray, entities: IntArray, *, chunk: int = CHUNK_ROWS) -> FloatArray:
        """Score of each query vector (N, D) with its own entity (N,), float32 (N,); the same bits as `scores`."""
        out = np.empty(len(queries), np.float32)
        for first in range(0, len(queries), chunk):
            part = slice(first, first + chunk)
            rows = np.asarray(entities[part], dtype=np.int64)
            block = self._load(self.columns.take(rows, axis=1), np.empty((self.width, len(rows))))
            with np.errstate(invalid="ignore", over="ignore"):
                out[part] = np.einsum("nd,dn->n", on_grid(queries[part]), block) * self._steps(rows)
        return _checked(out)

    def some_scores(self, grid: FloatArray, entities: IntArray) -> FloatArray:
        """Scores of one query (D,) from `on_grid` with some entities (N,), float32 (N,); bits of `scores`."""
        rows = np.asarray(entities, dtype=np.int64)
        block = self._load(self.columns.take(rows, axis=1), np.empty((self.width, len(rows))))
        return _checked(self._products(grid[None], block, rows)[0])

    def appended(self, vector: FloatArray) -> VectorTable:
        """A new table with one more unit vector (D,) at the end, stored as this table stores its own."""
        row = np.asarray(vector, dtype=np.float32)[None]
        more = VectorTable(row) if self.scales is None else VectorTable.quantised(row)
        return self.joined(more)

    def joined(self, more: VectorTable) -> VectorTable:
        """A new table with the rows of another of the same kind after its own."""
        columns = np.concatenate([self.columns, more.columns], axis=1)
        if self.scales is None or more.scales is None:
            return VectorTable(columns.T)
        return VectorTable(columns.T, np.concatenate([self.scales, more.scales]))

    def take(self, entities: IntArray) -> VectorTable:
        """A new table of the given rows, in the given order."""
        columns = self.columns.take(entities, axis=1)
        return VectorTable(columns.T, None if self.scales is None else self.scales[entities])

    def _load(self, columns: FloatArray | IntArray, buffer: FloatArray) -> FloatArray:
        """Columns as float64 whole numbers in `buffer`: int8 as they are, float32 as grid steps."""
        if self.scales is None:
            columns = np.rint(columns * np.float32(GRID))  # exact in float32: only a power of two
        np.copyto(buffer, columns)
        return buffer

    def _products(
        self, grid: FloatArray, block: FloatArray, rows: slice | IntArray, *, shared: bool = False
    ) -> FloatArray:
        with np.errstate(invalid="ignore", over="ignore"):  # a damaged table: _checked says so
            dots = np.matmul(grid, block) if shared else _dots(grid, block)
            return np.asarray(dots * self._steps(rows), dtype=np.float32)

    def _steps(self, rows: slice | IntArray) -> FloatArray | float:
        """What one whole number of the dot product is worth, float64."""
        if self.scales is None:
            return 1.0 / (GRID * GRID)
        return self.scales[rows].astype(np.float64) / GRID


def top_k(scores: FloatArray, k: int) -> IntArray:
    """Indices of the k highest scores of (E,), best first; of equal scores the lower index comes first.

    Entries of -inf are excluded answers and never returned, so fewer than k may come back.
    """
    candidates = np.flatnonzero(scores > -np.inf)
    if k < len(candidates):
        # everything above the k-th score and every tie with it, so that the tie rule can choose among them
        bar = np.partition(scores[candidates], -k)[-k]
        candidates = candidates[scores[candidates] >= bar]
    order = np.argsort(-scores[candidates], kind="stable")
    return candidates[order[:k]]


def _dots(queries: FloatArray, columns: FloatArray) -> FloatArray:
    """Dot products of (Q, D) and (D, C), float64 (Q, C), in tiles that no BLAS shares out between threads."""
    count, width = queries.shape
    tile = next((size for size in TILE_QUERIES if count <= size), TILE_QUERIES[-1])
    limit = ROW_PRODUCTS if tile == 1 else TILE_PRODUCTS
    left = _whole_tiles(queries, tile)
    size = 1 << (max(1, limit // (tile * width)).bit_length() - 1)  # a power of two fills a chunk without a copy
    missing = -columns.shape[1] % size
    whole = np.concatenate([columns, np.zeros((width, missing))], axis=1) if missing else columns
    right = whole.reshape(width, -1, size).swapaxes(0, 1)  # (C tiles, D, tile C)
    products: FloatArray = np.matmul(left[:, None], right[None])  # (Q tiles, C tiles, tile Q, tile C)
    table = products.swapaxes(1, 2).reshape(left.shape[0] * left.shape[1], right.shape[0] * size)
    return table[:count, : columns.shape[1]]


def _whole_tiles(rows: FloatArray, tile: int) -> FloatArray:
    """Rows (N, D) as (tiles, tile, D), filled up with zeros."""
    missing = -len(rows) % tile
    if missing:
        rows = np.concatenate([rows, np.zeros((missing, rows.shape[1]))])
    return rows.reshape(-1, tile, rows.shape[1])


def on_grid(vectors: FloatArray) -> FloatArray:
    """Query vectors (…, D) in whole steps of 1 / GRID, float64. Raises RankingError for NaN or infinity."""
    vectors = np.asarray(vectors)
    if not np.isfinite(vectors).all():
        raise RankingError("the query tower gave a vector with NaN or infinity; it cannot be scored")
    return np.rint(vectors.astype(np.float64) * GRID)


def _checked(scores: FloatArray) -> FloatArray:
    if not np.isfinite(scores).all():
        raise RankingError("scores are NaN or infinite: the table of entity vectors is damaged")
    return scores
