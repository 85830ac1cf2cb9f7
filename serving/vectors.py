"""The table of entity vectors, int8 or float32, memory-mapped, and scores against it that never vary.

A score is a cosine. Queries are rounded to a grid of 2^-26 (float32 tables too, as they are read), far below what
float32 keeps of a score, and the products are summed in float64. On that grid every product and every partial
sum of unit vectors is a whole number of grid steps below 2^53, so float64 holds it exactly and the order of
summation cannot matter: a query scores the same to the last bit alone or in a batch, whatever the chunk, the
thread count, the BLAS or the machine, and equal vectors always tie. Measured on one core with 41,000 x 384 int8
vectors: 7 ms a query, against 3.5 ms for float32 sums that have none of these properties.

Scoring keeps to the calling thread. numpy's BLAS would start a thread for every core it sees, whatever number of
threads the user asked for and whatever quota the container has; on two busy cores a batch took a hundred times as
long. So products are cut into tiles too small for OpenBLAS to share out, which costs a third of one thread's speed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray, RankingError

GRID = 2.0**26
"""Grid steps in 1. Products are whole steps of 2^-52: exact while two vectors' lengths multiply to under 2."""
CHUNK_ROWS = 1024  # 1024 x 384 float64 are 3 MB: near the cache, and few enough turns of the loop
INT8_MAX = 127
TILE_QUERIES = (1, 8, 16)  # a batch is filled up to one of these, or to a multiple of the last
TILE_PRODUCTS = 65536 * 4  # OpenBLAS keeps a matrix product of up to this many multiplications on one thread
ROW_PRODUCTS = 2304 * 4 - 1  # and a product of one row with a matrix (its interface/gemm.c and interface/gemv.c)


@dataclass(frozen=True)
class VectorTable:
    """Vectors of E entities. values: (E, D) int8 or float32; scales: (E,) float32 where int8, else None."""

    values: FloatArray | IntArray
    scales: FloatArray | None = None

    @classmethod
    def quantised(cls, vectors: FloatArray) -> VectorTable:
        """The int8 table of float vectors (E, D): each row divided by its own largest value over 127."""
        vectors = np.asarray(vectors, dtype=np.float32)
        largest = np.abs(vectors).max(axis=1, initial=0.0)
        scales = np.where(largest > 0, largest / INT8_MAX, 1.0).astype(np.float32)
        values = np.rint(vectors / scales[:, None]).clip(-INT8_MAX, INT8_MAX)
        return cls(values.astype(np.int8), scales)

    def __len__(self) -> int:
        """E."""
        return len(self.values)

    @property
    def width(self) -> int:
        """D."""
        return int(self.values.shape[1])

    def vectors(self) -> FloatArray:
        """Every vector as float32 (E, D)."""
        if self.scales is None:
            return np.array(self.values, dtype=np.float32)
        return self.values.astype(np.float32) * self.scales[:, None]

    def scores(self, queries: FloatArray, *, chunk: int = CHUNK_ROWS, shared: bool = False) -> FloatArray:
        """Scores of query vectors (Q, D) against every entity, float32 (Q, E); `chunk` rows at a time.

        Beside the result it needs `chunk` x (D + Q) float64. shared: let numpy's BLAS share the products out
        between threads, as a tool may that has the machine to itself; the bits are the same. Raises RankingError
        if any score is not finite.
        """
        grid, out = _on_grid(queries), np.empty((len(queries), len(self)), np.float32)
        buffer = np.empty((min(chunk, len(self)), self.width))
        for first in range(0, len(self), chunk):
            rows = slice(first, min(first + chunk, len(self)))
            block = self._load(rows, buffer[: rows.stop - first])
            with np.errstate(invalid="ignore", over="ignore"):  # a damaged table: _checked says so
                products = np.matmul(grid, block.T) if shared else _dots(grid, block)
                out[:, rows] = products * self._steps(rows)
        return _checked(out)

    def pair_scores(self, queries: FloatArray, entities: IntArray, *, chunk: int = CHUNK_ROWS) -> FloatArray:
        """Score of each query vector (N, D) with its own entity (N,), float32 (N,); the same bits as `scores`."""
        out = np.empty(len(queries), np.float32)
        for first in range(0, len(queries), chunk):
            part = slice(first, first + chunk)
            rows = np.asarray(entities[part], dtype=np.int64)
            block = self._load(rows, np.empty((len(rows), self.width)))
            with np.errstate(invalid="ignore", over="ignore"):
                out[part] = np.einsum("nd,nd->n", _on_grid(queries[part]), block) * self._steps(rows)
        return _checked(out)

    def added(self, vector: FloatArray) -> VectorTable:
        """A new table with one more unit vector (D,) at the end, stored as this table stores its own."""
        row = np.asarray(vector, dtype=np.float32)[None]
        if self.scales is None:
            return VectorTable(np.concatenate([self.values, row]))
        more = VectorTable.quantised(row)
        return VectorTable(np.concatenate([self.values, more.values]), np.concatenate([self.scales, more.scales]))

    def removed(self, entity: int) -> VectorTable:
        """A new table without one entity; those after it move up."""
        scales = None if self.scales is None else np.delete(self.scales, entity)
        return VectorTable(np.delete(self.values, entity, axis=0), scales)

    def _load(self, rows: slice | IntArray, buffer: FloatArray) -> FloatArray:
        """Rows as float64 whole numbers in `buffer`: int8 as they are, float32 as grid steps."""
        values = self.values[rows]
        if self.scales is None:
            values = np.rint(values * np.float32(GRID))  # exact in float32: only a power of two
        np.copyto(buffer, values)
        return buffer

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


def _dots(queries: FloatArray, rows: FloatArray) -> FloatArray:
    """Dot products of (Q, D) and (C, D), float64 (Q, C), in tiles that no BLAS shares out between threads."""
    count, width = queries.shape
    tile = next((size for size in TILE_QUERIES if count <= size), TILE_QUERIES[-1])
    limit = ROW_PRODUCTS if tile == 1 else TILE_PRODUCTS
    left = _whole_tiles(queries, tile)
    fitting = max(1, limit // (tile * width))
    right = _whole_tiles(rows, 1 << (fitting.bit_length() - 1))  # a power of two fills a chunk without a copy
    products: FloatArray = np.matmul(
        left[:, None], right[None].swapaxes(2, 3)
    )  # (Q tiles, C tiles, tile Q, tile C)
    table = products.swapaxes(1, 2).reshape(left.shape[0] * left.shape[1], right.shape[0] * right.shape[1])
    return table[:count, : len(rows)]


def _whole_tiles(rows: FloatArray, tile: int) -> FloatArray:
    """Rows (N, D) as (tiles, tile, D), filled up with zeros."""
    missing = -len(rows) % tile
    if missing:
        rows = np.concatenate([rows, np.zeros((missing, rows.shape[1]))])
    return rows.reshape(-1, tile, rows.shape[1])


def _on_grid(vectors: FloatArray) -> FloatArray:
    vectors = np.asarray(vectors)
    if not np.isfinite(vectors).all():
        raise RankingError("the query tower gave a vector with NaN or infinity; it cannot be scored")
    return np.rint(vectors.astype(np.float64) * GRID)


def _checked(scores: FloatArray) -> FloatArray:
    if not np.isfinite(scores).all():
        raise RankingError("scores are NaN or infinite: the table of entity vectors is damaged")
    return scores
