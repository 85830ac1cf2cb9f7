"""The batch at which a run ended because its losses or gradients were not finite, written for people to look at.

`bad-batch/batch.json` says what was asked, in words, and what came of it; `bad-batch/batch.safetensors` holds the
tensors of the step as they were given to the towers.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmd.batches import Batch, TrainingTexts
from pmd.model import BiEncoder, unique_state
from pmd.packing import PackedTexts
from pmd.serving.storage import atomic_folder
from pmd.tensorfile import save_tensors

FOLDER, FACTS, TENSORS = "bad-batch", "batch.json", "batch.safetensors"
SCHEMA = "pmd-bad-batch/1"


def save_bad_batch(
    folder: Path, batch: Batch, texts: TrainingTexts, model: BiEncoder, facts: dict[str, Any]
) -> None:
    """Write a batch and what is known of its step into `folder`, whole or not at all, in place of an earlier one.

    facts: JSON values, none of them NaN. model: the student, as the step found it. Raises StorageError, OSError.
    """
    written = {
        "schema": SCHEMA,
        **facts,
        "largest_weight": _largest_weight(model),
        "queries": _queries(batch, texts),
        "candidates": _candidates(batch, texts),
    }
    tensors = {
        **_sheet("query", batch.queries),
        **_sheet("entity", batch.entities),
        "positive": batch.positive,
        "negative": batch.negative,
        "query_ids": torch.from_numpy(batch.query_ids),
        "entity_ids": torch.from_numpy(batch.entity_ids),
        "heads": torch.from_numpy(batch.heads),
    }
    with atomic_folder(folder, replace=True) as partial:
        save_tensors(partial / TENSORS, {name: tensor.clone() for name, tensor in tensors.items()}, {})
        text = json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False)
        (partial / FACTS).write_text(text + "\n", encoding="utf-8")


def _sheet(side: str, packed: PackedTexts) -> dict[str, Tensor]:
    return {f"{side}.{name}": value for name, value in asdict(packed).items() if isinstance(value, Tensor)}


def _queries(batch: Batch, texts: TrainingTexts) -> list[dict[str, Any]]:
    """Each query of the batch: its place in the table, its head and relation, its words, its answers here."""
    graph = texts.graph
    heads, relations = texts.known.queries()[batch.query_ids].T
    words = graph.texts(texts.templates).queries(heads, relations)
    count = len(graph.relation_ids)
    return [
        {
            "query": int(query),
            "head": graph.entity_ids[head],
            "relation": graph.relation_ids[relation % count],
            "asks_for": "head" if relation >= count else "tail",
            "text": list(text),
            "answers": [graph.entity_ids[index] for index in batch.entity_ids[row.numpy()]],
        }
        for query, head, relation, text, row in zip(
            batch.query_ids, heads, relations, words, batch.positive, strict=True
        )
    ]


def _candidates(batch: Batch, texts: TrainingTexts) -> list[dict[str, Any]]:
    builder = texts.graph.texts(texts.templates)
    return [
        {"index": int(index), "entity": texts.graph.entity_ids[index], "text": builder.entity(int(index))}
        for index in batch.entity_ids
    ]


def _largest_weight(model: BiEncoder) -> dict[str, Any]:
    """The tensor with the largest weight, and its size, null for infinity: far above 100 the model has diverged."""
    sizes = {name: float(tensor.abs().max()) for name, tensor in unique_state(model).items() if tensor.numel()}
    name = max(sizes, key=lambda name: sizes[name])
    return {"tensor": name, "size": sizes[name] if math.isfinite(sizes[name]) else None}
