"""How many times as long arithmetic takes when its numbers are denormal."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def slowdowns() -> dict[str, float]:
    """Of a torch tower, and of a pass over entity vectors in serving."""
    return {"denormal_slowdown_torch": _slowdown(), "denormal_slowdown_onnxruntime": _slowdown_served()}


def _slowdown() -> float:
    """How many times as long a torch tower takes when all its weights are denormal."""
    import torch

    from pmd.model import run_tower
    from pmd.packing import pack
    from tests.tiny_run import random_model
    from tests.tiny_towers import random_texts

    model, table = random_model(4, 0), random_texts(200)
    texts = pack(dataclasses.replace(table, ids=table.ids % model.query.config.vocab_size))
    torch.set_num_threads(1)
    times = []
    for scale in (1.0, 1e-40):
        for parameter in model.query.parameters():
            parameter.data *= scale
        with torch.no_grad():
            times.append(_seconds(lambda: run_tower(model.query, texts)))
    return round(times[1] / times[0], 2)


def _slowdown_served() -> float:
    """The same of onnxruntime's pass over the vectors of 20,000 entities."""
    from pmd.serving.scan import make_scan
    from pmd.serving.vectors import VectorTable

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20_000, 64)).astype(np.float32)
    query = np.full((1, 64), 0.125)
    times = []
    for scale in (np.float32(0.1), np.float32(1e-40)):
        scan = make_scan(VectorTable(np.asfortranarray(vectors * scale)), 1)
        times.append(_seconds(lambda scan=scan: scan(query)))
    return round(times[1] / times[0], 2)


def _seconds(run: Callable[[], Any]) -> float:
    laps = []
    for _ in range(5):
        started = time.perf_counter()
        run()
        laps.append(time.perf_counter() - started)
    return min(laps)
