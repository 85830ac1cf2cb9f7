"""optimum's model class on the bundle's graph, with transformers' tokenizer and a mean in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer

from pmd.benchmarks.peers.material import Material, Pair
from pmd.benchmarks.peers.sessions import session_options
from pmd.benchmarks.sides import Side
from pmd.serving.bundle import MODEL
from pmd.serving.ranking import FloatArray


def ort_model(request: dict[str, Any], material: Material) -> Side:
    """ORTModelForFeatureExtraction, numpy arrays in and out. request: `query`, the tower's folder; `threads`."""
    folder, graph = request["query"], Path(MODEL)
    model = ORTModelForFeatureExtraction.from_pretrained(
        folder,
        subfolder=str(graph.parent),
        file_name=graph.name,
        provider="CPUExecutionProvider",
        session_options=session_options(request["threads"]),
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(pair: Pair) -> FloatArray:
        given = tokenizer(*pair, truncation=True, return_tensors="np")
        mean = model(**given).last_hidden_state[0].mean(axis=0)  # one text has no padding
        return np.asarray(mean / np.linalg.norm(mean))

    return material.by_cosine(encode)
