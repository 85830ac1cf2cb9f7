"""Narrower vectors: the directions in which the entities' vectors differ most, scaled to unit length again.

Dropping the last numbers of a vector keeps what matters only if training has seen to it (Matryoshka
representations, arXiv 2205.13147); the leading principal directions keep as much as that many numbers can, of any
trained model: docs/decisions/narrow-vectors.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pmd.serving.ranking import FloatArray


@dataclass(frozen=True)
class Narrowing:
    """A projection of vectors. matrix: float32 (D, W), orthonormal columns."""

    matrix: FloatArray

    @classmethod
    def of(cls, vectors: FloatArray, width: int) -> Narrowing:
        """The leading `width` directions of vectors (N, D), about the origin, so that dot products lose least."""
        exact = np.asarray(vectors, dtype=np.float64)
        _, directions = np.linalg.eigh(exact.T @ exact)  # eigenvalues rise
        leading = directions[:, ::-1][:, :width]
        signs = np.sign(leading[np.abs(leading).argmax(axis=0), np.arange(width)])  # else the solver's choice
        return cls((leading * signs).astype(np.float32))

    def narrowed(self, vectors: FloatArray) -> FloatArray:
        """Vectors (N, D) as unit vectors (N, W), as the graphs make them."""
        narrow = vectors.astype(np.float64) @ self.matrix
        return (narrow / np.linalg.norm(narrow, axis=1, keepdims=True)).astype(np.float32)

    def lifted(self, vectors: FloatArray) -> FloatArray:
        """Narrow vectors (N, W) as vectors of the full width (N, D), to compare with those they were made from."""
        return vectors @ self.matrix.T
