"""sentence-transformers with each of its backends."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from pmd.benchmarks.edge.usual import write_tower
from pmd.benchmarks.peers.material import Encode, Material, Pair
from pmd.benchmarks.peers.sessions import session_options
from pmd.benchmarks.sides import Side
from pmd.serving.bundle import MODEL
from pmd.serving.ranking import FloatArray


def on_torch(request: dict[str, Any], material: Material) -> Side:
    """The torch backend. request: `stage`, the weights' folder; `query`, for the small files; `threads`."""
    torch.set_num_threads(request["threads"])
    with tempfile.TemporaryDirectory(prefix="pmd-bench-") as folder:
        write_tower(Path(folder), Path(request["query"]).parent, Path(request["stage"]))
        model = SentenceTransformer(folder, device="cpu")
    return material.by_cosine(_encoder(model))


def on_onnx(request: dict[str, Any], material: Material) -> Side:
    """The ONNX backend on the bundle's graph. request: `query`, the tower's folder; `threads`."""
    torch.set_num_threads(request["threads"])
    given = {"provider": "CPUExecutionProvider", "session_options": session_options(request["threads"])}
    model = SentenceTransformer(request["query"], backend="onnx", device="cpu", model_kwargs=given)
    return material.by_cosine(_encoder(model))


def on_openvino(request: dict[str, Any], material: Material) -> Side:
    """The OpenVINO backend on the bundle's graph, which OpenVINO converts first. request: `query`, `threads`."""
    import openvino

    torch.set_num_threads(request["threads"])
    query = Path(request["query"])
    given = {"ov_config": {"INFERENCE_NUM_THREADS": request["threads"]}}
    with tempfile.TemporaryDirectory(prefix="pmd-bench-") as folder:
        copy = Path(folder) / "query"
        shutil.copytree(query, copy, ignore=shutil.ignore_patterns("onnx"))
        graph = openvino.convert_model(query / MODEL)
        openvino.save_model(graph, copy / "openvino" / "openvino_model.xml", compress_to_fp16=False)
        model = SentenceTransformer(str(copy), backend="openvino", device="cpu", model_kwargs=given)
    return material.by_cosine(_encoder(model))


def _encoder(model: SentenceTransformer) -> Encode:
    def encode(pair: Pair) -> FloatArray:
        return np.asarray(model.encode([pair], show_progress_bar=False)[0])

    return encode
