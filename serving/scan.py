"""One pass over all entity vectors inside onnxruntime: approximate scores, and how far from exact they can be.

For an int8 table the query is rounded to 8 bits as well and its products are whole numbers, summed exactly. Left
out is only what rounding took from the query, so by Cauchy and Schwarz no score is off by more than its length
times the entity's. The query is shifted to unsigned numbers and the shift taken off afterwards by each entity's
sum: onnxruntime has a fast kernel for one unsigned row without zero points, and it reads the table where it is,
so a memory-mapped table is neither copied nor unpacked.

Processors without VNNI add two 8-bit products in 16 bits and cut off what does not fit. Whether this one does is
tried when a scan is made, with the largest numbers there are; where it does, the query is rounded to 7 bits, with
which nothing can overflow (2 x 127 x 127 < 2^15), and the bound is twice as wide. Where sums of such numbers are
still wrong there is no scan.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pmd.serving.encoder import open_session
from pmd.serving.ranking import FloatArray, RankingError
from pmd.serving.vectors import VectorTable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

GRAPHS = "graphs"
"""The folder of the two graphs, a few hundred bytes each."""
QUERY_BITS = (8, 7)
ENTITY_MAX = 127
FLOAT_ROUNDING = 1e-6  # of a score of length 1: some roundings to float32, of 6e-8 each
PROBE_ENTITIES = 80  # more than one tile of any kernel, and a rest


class Scan(Protocol):
    """Approximate scores of queries against every entity."""

    about: str
    """What it is, in words."""

    def __call__(self, queries: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Queries float64 (Q, D) -> scores float32 (Q, E), and float64 (Q,) how far off each query's may be."""


class Int8Scan:
    """Of an int8 table. The graph rounds the query itself and gives back the length of what rounding took."""

    def __init__(self, table: VectorTable, session: InferenceSession, bits: int) -> None:
        """bits: of the query, 8 or 7; see `make_scan`."""
        self.about = f"onnxruntime, int8, queries of {bits} bits"
        self._session, self._table = session, table
        levels = _levels(bits)
        largest = 2 * levels + 1
        self._inputs = {
            "entities": table.columns,
            "scales": table.scales,
            "levels": np.array(levels, np.float32),
            "shift": np.zeros(len(table), np.int32),
        }
        ones = np.ones((1, table.width), np.float32)  # each becomes the largest number there is
        sums = session.run(["products"], {"queries": ones} | self._inputs)[0][0] // largest
        self._inputs["shift"] = sums * np.int32(levels + 1)

    def __call__(self, queries: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `Scan`."""
        inputs = {"queries": queries.astype(np.float32)} | self._inputs
        scores, rest, lengths = self._session.run(["scores", "rest", "lengths"], inputs)
        return scores, self._table.longest * (rest + FLOAT_ROUNDING * lengths).astype(np.float64)


class Float32Scan:
    """Of a float32 table: float32 products, whose rounding is bounded by the number of them."""

    def __init__(self, table: VectorTable, session: InferenceSession) -> None:
        self.about = "onnxruntime, float32"
        self._session, self._table = session, table
        # Higham, Accuracy and Stability of Numerical Algorithms, 3.1: D products summed in any order
        self._rounding = table.width * 2.0**-24 / (1 - table.width * 2.0**-24) + FLOAT_ROUNDING

    def __call__(self, queries: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `Scan`. Raises RankingError for scores that are not finite: a damaged table."""
        inputs = {"queries": queries.astype(np.float32), "entities": self._table.columns}
        (scores,) = self._session.run(["scores"], inputs)
        if not np.isfinite([scores.min(), scores.max()]).all():
            raise RankingError("scores are NaN or infinite: the table of entity vectors is damaged")
        return scores, self._table.longest * self._rounding * _lengths(queries)


def make_scan(table: VectorTable, threads: int | None) -> Scan | None:
    """The scan of a table; None where this processor's 8-bit sums cannot be trusted.

    threads: default as `cores.default_threads`. Raises MissingExtra without onnxruntime.
    """
    if table.scales is None:
        return Float32Scan(table, _session("float32", threads))
    session = _session("int8", threads)
    bits = next((bits for bits in QUERY_BITS if _sums_are_exact(session, _levels(bits))), None)
    return None if bits is None else Int8Scan(table, session, bits)


def _levels(bits: int) -> int:
    """The largest whole number on either side of 0 that a query is rounded to."""
    return int(2 ** (bits - 1)) - 1


def _lengths(vectors: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(np.einsum("qd,qd->q", vectors, vectors)))


def _session(kind: str, threads: int | None) -> InferenceSession:
    graph = resources.files("pmd.serving").joinpath(GRAPHS, f"{kind}.onnx").read_bytes()
    return open_session(graph, threads=threads)


def _sums_are_exact(session: InferenceSession, levels: int) -> bool:
    """Whether the kernels for one query and for several add up the largest products there are."""
    width = 64
    entities = np.full((width, PROBE_ENTITIES), ENTITY_MAX, np.int8)
    entities[:, ::2] = -ENTITY_MAX
    wanted = entities.sum(axis=0, dtype=np.int64) * (2 * levels + 1)
    for queries in (1, 2, 5):
        inputs = {
            "queries": np.ones((queries, width), np.float32),
            "entities": entities,
            "scales": np.ones(PROBE_ENTITIES, np.float32),
            "levels": np.array(levels, np.float32),
            "shift": np.zeros(PROBE_ENTITIES, np.int32),
        }
        if not (session.run(["products"], inputs)[0] == wanted).all():
            return False
    return True
