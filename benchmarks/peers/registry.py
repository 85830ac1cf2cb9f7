"""Which peers there are, and what each needs; nothing of them is imported here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from pmd.benchmarks.machine import version_of

OURS = "pmd.benchmarks.peers.ours:pmd_side"


@dataclass(frozen=True)
class Peer:
    """One stack that answers the same questions."""

    what: str
    """What it is, for people."""
    maker: str
    """module:function that makes its side, called in the child process alone."""
    modules: tuple[str, ...]
    """What must be importable."""
    distributions: tuple[str, ...]
    """What to install for that; their versions stand in the report."""
    weights: bool = False
    """Whether it needs the torch weights of the run that the bundle was made from."""


PEERS: dict[str, Peer] = {
    "torch": Peer(
        "torch, eager, float32; numpy",
        "pmd.benchmarks.peers.torch_sides:eager",
        ("torch", "transformers"),
        ("torch", "transformers"),
        weights=True,
    ),
    "torch-compiled": Peer(
        "torch.compile, float32; numpy",
        "pmd.benchmarks.peers.torch_sides:compiled",
        ("torch", "transformers"),
        ("torch", "transformers"),
        weights=True,
    ),
    "sentence-transformers": Peer(
        "sentence-transformers on torch, float32; numpy",
        "pmd.benchmarks.peers.sentence_sides:on_torch",
        ("sentence_transformers", "torch"),
        ("sentence-transformers", "torch"),
        weights=True,
    ),
    "sentence-transformers-onnx": Peer(
        "sentence-transformers on the bundle's graph in onnxruntime; numpy",
        "pmd.benchmarks.peers.sentence_sides:on_onnx",
        ("sentence_transformers", "optimum.onnxruntime"),
        ("sentence-transformers", "optimum-onnx"),
    ),
    "sentence-transformers-openvino": Peer(
        "sentence-transformers on the bundle's graph in OpenVINO; numpy",
        "pmd.benchmarks.peers.sentence_sides:on_openvino",
        ("sentence_transformers", "openvino", "optimum.intel"),
        ("sentence-transformers", "openvino", "optimum-intel"),
    ),
    "optimum": Peer(
        "optimum's ORTModelForFeatureExtraction on the bundle's graph; numpy",
        "pmd.benchmarks.peers.optimum_side:ort_model",
        ("optimum.onnxruntime", "transformers"),
        ("optimum-onnx", "transformers"),
    ),
    "faiss": Peer(
        "the bundle's own encoder; faiss, IndexFlatIP, float32",
        "pmd.benchmarks.peers.search_sides:faiss_flat",
        ("faiss",),
        ("faiss-cpu",),
    ),
    "usearch": Peer(
        "the bundle's own encoder; usearch, exact, float32",
        "pmd.benchmarks.peers.search_sides:usearch_exact",
        ("usearch",),
        ("usearch",),
    ),
}


def why_missing(peer: Peer) -> str | None:
    """Why a peer cannot be run here, and what to do; None if all it needs is installed."""
    missing = [
        distribution
        for module, distribution in zip(peer.modules, peer.distributions, strict=True)
        if not _importable(module)
    ]
    return f"{', '.join(missing)} not installed; run: pip install {' '.join(missing)}" if missing else None


def versions_of(distributions: Iterable[str]) -> dict[str, str | None]:
    """Installed versions; None where a module came another way."""
    return {name: version_of(name) for name in distributions}


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
