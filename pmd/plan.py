"""What a run will do, without doing it: `pmd-train --dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PretrainedConfig

from pmd.batches import Masking, epoch_rows, make_batch, steps_per_epoch, tokenise
from pmd.datasets.places import cache_folder
from pmd.encoder import read_config, resolve_encoder, student_depth
from pmd.families import SHARED_ROW_FAMILIES
from pmd.graph import KnowledgeGraph
from pmd.packing import padding_share
from pmd.recipe import Recipe
from pmd.serving.tokenization import TextTokenizer
from pmd.stages import plan_stages
from pmd.step import CPU_ACTIVATION_BYTES, activation_bytes

ADAM_COPIES = 4  # weights, gradients, two moments


def describe(recipe: Recipe, graph: KnowledgeGraph, device: torch.device) -> tuple[str, dict[str, Any]]:
    """The plan as text for people and as facts for machines: recipe, texts, steps, tokens, memory estimate."""
    files = resolve_encoder(recipe.encoder, recipe.encoder_sha256)
    config = read_config(files.folder)
    stages = plan_stages(recipe, config.num_hidden_layers, student_depth(recipe.student_encoder))
    tokenizer = TextTokenizer((files.folder / "tokenizer.json").read_text(encoding="utf-8"), recipe.max_tokens)
    texts = tokenise(graph, tokenizer, recipe.templates, cache_folder())
    rng = np.random.default_rng([recipe.seed, 0])
    rows = epoch_rows(texts, recipe.batching, rng)[0]
    shared_rows = config.model_type in SHARED_ROW_FAMILIES
    batch = make_batch(texts, rows, recipe.batching, Masking(0.0), rng, shared_rows=shared_rows)
    steps = steps_per_epoch(texts.known, recipe.batching)
    sheets = [*batch.queries.sheets(recipe.chunk_tokens), *batch.entities.sheets(recipe.chunk_tokens)]
    tokens = int((batch.queries.text >= 0).sum() + (batch.entities.text >= 0).sum())
    facts = {
        "dataset": graph.name,
        "counts": {
            "entities": graph.num_entities,
            "relations": graph.num_relations,
            "train": len(graph.train),
            "valid": len(graph.valid),
            "test": len(graph.test),
            "queries": len(texts.queries),
        },
        "encoder": {"name": files.name, "source": files.source, "sha256": files.sha256},
        "steps_per_epoch": steps,
        "triples_per_step": batch.num_triples,
        "candidates_per_step": batch.entities.num_texts,
        "tokens_per_step": tokens,
        "padding_share": round(padding_share(sheets), 4),
        "memory_bytes": _memory(
            files.folder / "model.safetensors", _activations(config, tokens, recipe.chunk_tokens, device)
        ),
        "stages": [
            {
                "stage": s.name,
                "grade": s.grade,
                "layers": list(s.layers),
                "mask_rate": s.mask_rate,
                "teacher": s.teacher,
            }
            | {"epochs": recipe.epochs_of(s.name), "steps": recipe.epochs_of(s.name) * steps}
            for s in stages
        ],
    }
    return _as_text(recipe, graph, recipe.templates, facts), facts


def _memory(weights: Path, activations: int) -> int:
    """Rough peak of a step: two towers with their optimiser, a teacher, and the activations held at once."""
    towers = 2 * weights.stat().st_size
    return towers * (ADAM_COPIES + 1) + activations


def _activations(config: PretrainedConfig, tokens: int, chunk_tokens: int | None, device: torch.device) -> int:
    """About the bytes of activations that a step of so many tokens holds at once."""
    if chunk_tokens is not None:
        return activation_bytes(config) * min(tokens, 2 * chunk_tokens)
    whole = activation_bytes(config) * tokens
    return min(whole, CPU_ACTIVATION_BYTES) if device.type == "cpu" else whole


def _as_text(recipe: Recipe, graph: KnowledgeGraph, templates: Any, facts: dict[str, Any]) -> str:
    builder = graph.texts(templates)
    head, relation, tail = (int(value) for value in graph.train[0])
    lines = [
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip(),
        "",
        f"query text:   {' [SEP] '.join(builder.query(head, relation))}",
        f"its inverse:  {' [SEP] '.join(builder.query(tail, relation + graph.num_relations))}",
        f"entity text:  {builder.entity(tail)}",
        "",
        f"{facts['steps_per_epoch']} steps an epoch, about {facts['tokens_per_step']} tokens a step, "
        f"about {facts['memory_bytes'] / 2**20:.0f} MiB at the peak",
    ]
    lines += [
        f"{s['stage']:<14} layers {s['layers']} mask {s['mask_rate']:.0%} epochs {s['epochs']} "
        f"taught by {s['teacher'] or 'nobody'}"
        for s in facts["stages"]
    ]
    return "\n".join(lines)
