"""A random BERT of a few thousand parameters and a toy graph: enough to train every stage in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from pmd.graph import KnowledgeGraph

WORDS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu is a part of near inverse "
    "big small old new red blue"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_tokenizer() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *WORDS, ":"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def write_encoder(folder: Path, *, layers: int = 4, width: int = 32, seed: int = 0) -> Path:
    """A saved BERT with random weights and its tokenizer, as a hub folder would hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS) + 1,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tiny_tokenizer().to_str(), encoding="utf-8")
    return folder


def tiny_graph() -> KnowledgeGraph:
    """12 entities in a chain and a ring, 3 relations, 40 training triples; some share a query."""
    rng = np.random.default_rng(7)
    every = np.array([(h, r, t) for h in range(12) for r in range(3) for t in range(12) if h != t])
    chosen = every[rng.choice(len(every), 52, replace=False)]
    return KnowledgeGraph(
        name="tiny",
        entity_ids=tuple(f"e{index}" for index in range(12)),
        names=tuple(WORDS[:12]),
        descriptions=tuple("big old" if index % 3 == 0 else "" for index in range(12)),
        relation_ids=("isa", "part_of", "near"),
        relation_texts=("is a", "part of", "near"),
        train=chosen[:40],
        valid=chosen[40:46],
        test=chosen[46:],
    )


def write_graph(folder: Path, graph: KnowledgeGraph | None = None) -> Path:
    """The graph as a dataset folder."""
    graph = graph or tiny_graph()
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(graph.entity_ids, graph.names, graph.descriptions, strict=True)
    (folder / "entities.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    rows = zip(graph.relation_ids, graph.relation_texts, strict=True)
    (folder / "relations.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    for split in ("train", "valid", "test"):
        lines = [
            f"{graph.entity_ids[h]}\t{graph.relation_ids[r]}\t{graph.entity_ids[t]}\n"
            for h, r, t in graph.split(split)
        ]
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def write_recipe(path: Path, data: Path, encoder: Path, **changes: object) -> Path:
    """A recipe that trains the toy graph's ladder in a second or two (JSON is YAML)."""
    settings: dict[str, object] = {
        "dataset": str(data),
        "encoder": str(encoder),
        "grades": [4, 2],
        "mask_rates": [0.3, 0.0],
        "epochs": 2,
        "batch_size": 8,
        "candidates": "all",
        "lr": 0.002,
        "warmup_steps": 2,
        "templates": {"neighbours": 3},
    }
    path.write_text(json.dumps(settings | changes), encoding="utf-8")
    return path
