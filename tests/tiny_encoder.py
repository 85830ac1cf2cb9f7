"""A random BERT of a few thousand parameters and a toy graph: enough to train every stage in seconds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

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


def roberta_tokenizer() -> Tokenizer:
    """Byte-level BPE with RoBERTa's special tokens, ids and template: two separators inside a pair."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def mpnet_tokenizer() -> Tokenizer:
    """Words, with MPNet's special tokens."""
    tokens = ["<s>", "<pad>", "</s>", "[UNK]", *WORDS, ":", "<mask>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


BERT_LIKE = {"num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}
FAIRSEQ = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
FAMILIES: dict[str, tuple[str, Callable[[], Tokenizer], dict[str, Any]]] = {
    "bert": ("bert", tiny_tokenizer, BERT_LIKE),
    "bert with one token type": ("bert", tiny_tokenizer, BERT_LIKE | {"type_vocab_size": 1}),
    "electra": ("electra", tiny_tokenizer, BERT_LIKE | {"embedding_size": 16}),
    "distilbert": (
        "distilbert",
        tiny_tokenizer,
        {"n_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "sinusoidal_pos_embds": False},
    ),
    "mpnet": ("mpnet", mpnet_tokenizer, BERT_LIKE | FAIRSEQ),
    "roberta": ("roberta", roberta_tokenizer, BERT_LIKE | FAIRSEQ | {"type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", roberta_tokenizer, BERT_LIKE | FAIRSEQ | {"type_vocab_size": 1}),
    "modernbert": (
        "modernbert",
        tiny_tokenizer,
        BERT_LIKE
        | {"local_attention": 8, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
        | {"bos_token_id": 2, "eos_token_id": 3},
    ),
}
"""By name: transformers' model type, the tokenizer, and settings beside size."""


def write_family(folder: Path, family: str, *, layers: int = 4, width: int = 32, **changes: Any) -> Path:
    """A saved encoder of a family with random weights, its biases and norms random too, and its tokenizer."""
    model_type, tokenizer, settings = FAMILIES[family]
    built = tokenizer()
    inner = "hidden_dim" if model_type == "distilbert" else "intermediate_size"
    size = {"vocab_size": built.get_vocab_size(), inner: 2 * width}
    names = ("dim", "n_layers") if model_type == "distilbert" else ("hidden_size", "num_hidden_layers")
    size |= dict(zip(names, (width, layers), strict=True))
    config = AutoConfig.for_model(model_type, **size | settings | changes)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ModernBERT's module compiles a function when it is imported: torch warns
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(built.to_str(), encoding="utf-8")
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
        "batch_size": 24,
        "candidates": "all",
        "lr": 0.002,
        "warmup_steps": 2,
        "templates": {"neighbours": 3},
    }
    path.write_text(json.dumps(settings | changes), encoding="utf-8")
    return path
