"""All entities of a graph through the entity tower: sentence-transformers in torch, and bundles."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pmd.datasets import load_graph
from pmd.grade import load_grade
from pmd.serving.bundle import CONFIG, ENTITY, Bundle
from pmd.serving.encoder import TowerEncoder

Encode = Callable[[Sequence[str]], np.ndarray]
BASELINE = "sentence-transformers, torch"
BATCH = 32  # sentence-transformers' own default
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    CONFIG,
)
"""A tower's files that sentence-transformers reads beside the weights."""


def measure_encode(
    stage: str, data: str, bundles: Mapping[str, str], texts: int, parts: int, threads: int
) -> dict[str, Any]:
    """Texts a second by every side, on the same threads, in turn over `parts` shares of the texts.

    stage: the grade's folder. texts: how many entities, 0 for all; they are drawn evenly.
    """
    torch.set_num_threads(threads)
    grade = load_grade(Path(stage))
    every = load_graph(data).texts(grade.info.templates).entities()
    chosen = every if not texts else [every[i] for i in np.linspace(0, len(every) - 1, texts).round().astype(int)]
    shares = [chosen[first::parts] for first in range(parts)]
    lengths = grade.tokenizer(chosen).lengths
    with tempfile.TemporaryDirectory() as folder:
        sides = {BASELINE: _sentence_transformers(Path(folder), Path(next(iter(bundles.values()))), stage)}
        sides |= {name: _tower(Path(path), threads) for name, path in bundles.items()}
        for encode in sides.values():
            encode(chosen[:BATCH])
        seconds = dict.fromkeys(sides, 0.0)
        gaps = dict.fromkeys(sides, 0.0)
        for number, share in enumerate(shares):
            names = list(sides)
            exact = None
            for name in names[number % len(names) :] + names[: number % len(names)]:
                began = time.perf_counter()
                vectors = sides[name](share)
                seconds[name] += time.perf_counter() - began
                if name == BASELINE:
                    exact = vectors
            again = sides[BASELINE](share[:BATCH]) if exact is None else exact[:BATCH]
            for name, encode in sides.items():
                gap = 1 - (encode(share[:BATCH]).astype(np.float64) * again).sum(axis=1)
                gaps[name] = max(gaps[name], float(gap.max()))
    return {
        "texts": len(chosen),
        "tokens": int(lengths.sum()),
        "threads": threads,
        "sides": {
            name: {
                "seconds": seconds[name],
                "texts_per_second": len(chosen) / seconds[name],
                "times_sentence_transformers": seconds[BASELINE] / seconds[name],
                "max_cosine_gap": max(0.0, gaps[name]),
            }
            for name in sides
        },
    }


def _sentence_transformers(folder: Path, bundle: Path, stage: str) -> Encode:
    """The same weights as a user of sentence-transformers would have them, in its torch backend."""
    from sentence_transformers import SentenceTransformer

    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((bundle / ENTITY / name).read_bytes())
    tower = load_grade(Path(stage)).model.entity
    config = json.loads(tower.config.to_json_string()) | {"architectures": [type(tower).__name__]}
    (folder / CONFIG).write_text(json.dumps(config))
    weights = {name: value.contiguous() for name, value in tower.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: np.asarray(model.encode(list(texts), batch_size=BATCH, show_progress_bar=False))


def _tower(bundle: Path, threads: int) -> Encode:
    encoder = TowerEncoder.load(Bundle.open(bundle), ENTITY, threads=threads)
    return lambda texts: np.asarray(encoder(texts))
