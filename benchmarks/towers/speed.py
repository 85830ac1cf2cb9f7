"""One text through a tower: torch as written and with its fused attention, and the graph of every precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pmd.benchmarks.latency import summary_ms
from pmd.grade import load_grade, rebuilt_tower
from pmd.model import unit_length
from pmd.serving.bundle import MODEL, QUERY
from pmd.serving.encoder import OUTPUT, open_session

WARM_UP = 20
FIRST_ID = 1000  # an ordinary piece of BERT's vocabulary, below those that a trimmed one drops


def measure_speed(stage: str, bundles: Mapping[str, str], tokens: int, laps: int, threads: int) -> dict[str, Any]:
    """Milliseconds of one text of `tokens` tokens by every side, one after the other in every lap.

    stage: the grade's folder. bundles: by precision. Every side reads the same ids and gives a pooled unit vector.
    """
    torch.set_num_threads(threads)
    ids = FIRST_ID + np.arange(tokens)[None]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    sides = {f"torch {kind}": _torch(Path(stage), kind, inputs) for kind in ("eager", "sdpa")}
    sides |= {name: _onnx(Path(folder), inputs, threads) for name, folder in bundles.items()}
    names = list(sides)
    took = {name: np.empty(laps, np.int64) for name in names}
    for lap in range(-WARM_UP, laps):
        for name in names[lap % len(names) :] + names[: lap % len(names)]:  # who comes first changes
            began = time.perf_counter_ns()
            sides[name]()
            if lap >= 0:
                took[name][lap] = time.perf_counter_ns() - began
    exact = sides["torch eager"]()
    return {
        name: summary_ms(took[name])
        | {
            "times_torch_eager": float(np.median(took["torch eager"]) / np.median(took[name])),
            "cosine_gap": max(0.0, float(1 - (side() * exact).sum())),
        }
        for name, side in sides.items()
    }


def _torch(stage: Path, attention: str, inputs: Mapping[str, np.ndarray]) -> Callable[[], np.ndarray]:
    query = load_grade(stage).model.query
    tower = rebuilt_tower(query.config, query.state_dict(), attention)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def encode() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(unit_length(tower(**tensors).last_hidden_state.sum(dim=1)).numpy()[0])

    return encode


def _onnx(bundle: Path, inputs: Mapping[str, np.ndarray], threads: int) -> Callable[[], np.ndarray]:
    session = open_session(bundle / QUERY / MODEL, threads=threads)
    return lambda: np.asarray(session.run([OUTPUT], dict(inputs))[0][0])
