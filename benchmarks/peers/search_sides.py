"""Libraries of vector search in the place of ours: the bundle's encoder, then float32 vectors in their index."""

from __future__ import annotations

from typing import Any

from pmd.benchmarks.peers.material import Encode, Material
from pmd.benchmarks.sides import Side
from pmd.serving.bundle import QUERY, Bundle
from pmd.serving.encoder import TowerEncoder
from pmd.serving.ranking import FloatArray


def faiss_flat(request: dict[str, Any], material: Material) -> Side:
    """IndexFlatIP of faiss, which is exact. request: `bundle`, `threads`."""
    import faiss

    faiss.omp_set_num_threads(request["threads"])
    vectors = material.vectors()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def search(vector: FloatArray, count: int) -> list[int]:
        found: list[int] = index.search(vector[None], count)[1][0].tolist()
        return found

    return material.by_search(_encoder(request), search)


def usearch_exact(request: dict[str, Any], material: Material) -> Side:
    """Exact search of usearch through every vector. request: `bundle`, `threads`."""
    from usearch.index import MetricKind
    from usearch.index import search as search_all

    vectors = material.vectors()

    def search(vector: FloatArray, count: int) -> list[int]:
        given: dict[str, Any] = {"metric": MetricKind.IP, "exact": True, "threads": request["threads"]}
        found: list[int] = search_all(vectors, vector, count, **given).keys.tolist()
        return found

    return material.by_search(_encoder(request), search)


def _encoder(request: dict[str, Any]) -> Encode:
    encoder = TowerEncoder.load(Bundle.open(request["bundle"]), QUERY, threads=request["threads"])
    return lambda pair: encoder([pair])[0]
