"""A finished run of the toy graph, written without training: random grades and their true metrics."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig

from pmd.batches import tokenise
from pmd.evaluation import evaluate_model
from pmd.grade import GradeInfo, save_grade, without_pooler
from pmd.graph import KnowledgeGraph
from pmd.model import BiEncoder
from pmd.run import LADDER_SCHEMA, RUN_SCHEMA
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_graph

STAGES = {"teacher": 4, "pre-distilled": 4, "grade-2": 2}
TEMPLATES, MAX_TOKENS = Templates(neighbours=3), 20
RERANK = {"hops": 1, "weight": 0.05}


def random_model(layers: int, seed: int) -> BiEncoder:
    """Two different random towers, far enough from each other that int8 does not reorder the toy ranking."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=tiny_tokenizer().get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.4,
        )
        towers = [without_pooler(AutoModel.from_config(config)) for _ in range(2)]
    return BiEncoder(*towers, temperature=0.05).eval()


def write_run(root: Path, graph: KnowledgeGraph | None = None, stages: dict[str, int] | None = None) -> Path:
    """Write ROOT/run and the dataset ROOT/tiny; returns the run folder."""
    graph = graph or tiny_graph()
    data, run = write_graph(root / graph.name, graph), root / "run"
    tokenizer_json = tiny_tokenizer().to_str()
    texts = tokenise(graph, TextTokenizer(tokenizer_json, MAX_TOKENS), TEMPLATES)
    entries = []
    for seed, (name, layers) in enumerate((stages or STAGES).items()):
        model = random_model(layers, seed)
        save_grade(run / name, model, tokenizer_json, GradeInfo(name, "tiny-bert", MAX_TOKENS, TEMPLATES))
        valid, _ = evaluate_model(model, texts, "valid", graph.known())
        test, reranked = evaluate_model(model, texts, "test", graph.known(), (1, 0.05))
        metrics = {"valid": valid, "test": test, "test_reranked": reranked}
        entries.append({"stage": name, "grade": layers, "parameters": model.num_parameters, **metrics})
    facts = {
        "run.json": {
            "schema": RUN_SCHEMA,
            "recipe": {"dataset": str(data), "method": "pmd", "seed": 0, "rerank": RERANK},
            "machine": {"processor": "a small one", "gpu": None},
        },
        "ladder.json": {
            "schema": LADDER_SCHEMA,
            "dataset": graph.name,
            "method": "pmd",
            "encoder": "tiny-bert",
            "seed": 0,
            "stages": entries,
        },
    }
    for name, value in facts.items():
        (run / name).write_text(json.dumps(value), encoding="utf-8")
    return run
