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
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray, RankingError
from pmd.serving.vectors import VectorTable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

GRAPHS = "graphs"
"""The folder of the two graphs, a few hundred bytes each."""
QUERY_BITS = (8, 7)
ENTITY_MAX = 127
FLOAT_ROUNDING = 1e-6  # of a score of length 1: four roundings to float32, the last one by onnxruntime
PROBE_ENTITIES = 80  # more than one tile of any kernel, and a rest


class Scan(Protocol):
    """Approximate scores of queries against every entity."""

    about: str
    """What it is, in words."""

    def __call__(self, queries: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Queries float64 (Q, D) -> scores float32 (Q, E), and float64 (Q,) how far off each query's may be."""


class Int8Scan:
    """Of an int8 table."""

    def __init__(self, table: VectorTable, session: InferenceSession, bits: int) -> None:
        """bits: of the query, 8 or 7; see `query_bits`."""
        self.about = f"onnxruntime, int8, queries of {bits} bits"
        self._session, self._table = session, table
        self._levels = 2 ** (bits - 1) - 1
        ones = np.ones((1, table.width), np.uint8)
        sums = session.run(["dots"], self._inputs(ones, np.zeros(len(table), np.int32)))[0][0]
        self._shift = sums * np.int32(self._levels + 1)

    def __call__(self, queries: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `Scan`."""
        steps = np.abs(queries).max(axis=1, keepdims=True) / self._levels
        steps[steps == 0] = 1.0
        whole = np.rint(queries / steps)
        rest = _lengths(queries - whole * steps)
        shifted = (whole + (self._levels + 1)).astype(np.uint8)
        (scores,) = self._session.run(["scores"], self._inputs(shifted, self._shift, steps.astype(np.float32)))
        return scores, self._table.longest * (rest + FLOAT_ROUNDING * _lengths(queries))

    def _inputs(self, shifted: IntArray, shift: IntArray, steps: FloatArray | None = None) -> dict[str, object]:
        return {
            "queries": shifted,
            "entities": self._table.columns,
            "shift": shift,
            "scales": self._table.scales,
            "steps": np.ones((len(shifted), 1), np.float32) if steps is None else steps,
        }


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
    bits = next((bits for bits in QUERY_BITS if _sums_are_exact(session, bits)), None)
    return None if bits is None else Int8Scan(table, session, bits)


def _lengths(vectors: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(np.einsum("qd,qd->q", vectors, vectors)))


def _session(kind: str, threads: int | None) -> InferenceSession:
    graph = resources.files("pmd.serving").joinpath(GRAPHS, f"{kind}.onnx").read_bytes()
    return open_session(graph, threads=threads)


def _sums_are_exact(session: InferenceSession, bits: int) -> bool:
    """Whether the kernels for one query and for several add up the largest products there are."""
    width = 64
    entities = np.full((width, PROBE_ENTITIES), ENTITY_MAX, np.int8)
    entities[:, ::2] = -ENTITY_MAX
    wanted = entities.sum(axis=0, dtype=np.int64) * (2**bits - 1)
    for queries in (1, 2, 5):
        inputs = {
            "queries": np.full((queries, width), 2**bits - 1, np.uint8),
            "entities": entities,
            "shift": np.zeros(PROBE_ENTITIES, np.int32),
            "scales": np.ones(PROBE_ENTITIES, np.float32),
            "steps": np.ones((queries, 1), np.float32),
        }
        if not (session.run(["dots"], inputs)[0] == wanted).all():
            return False
    return True
