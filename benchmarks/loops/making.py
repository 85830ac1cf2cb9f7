"""Processor seconds that an epoch's batches take to make, for graphs of growing size; no tower is run."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from pmd.batches import Batching, Masking, TrainingTexts, epoch_batches
from pmd.benchmarks.loops.setting import recipe_of
from pmd.benchmarks.loops.wanted import Wanted
from pmd.encoder import resolve_encoder
from pmd.graph import KnowledgeGraph
from pmd.memory import EntityMemory
from pmd.serving.known import IntArray
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer, TokenTable

RELATIONS, TRIPLES_PER_ENTITY = 11, 2  # about WN18RR's
SIZES = (1, 2, 4)


def measure_making(wanted: Wanted, triples: int) -> list[dict[str, Any]]:
    """For each size: triples, seconds of an epoch's batches, and of who rivals whom when all are remembered."""
    torch.set_num_threads(wanted.threads)
    recipe = recipe_of(wanted)
    folder = resolve_encoder(recipe.encoder, recipe.encoder_sha256).folder
    tokenizer = TextTokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), recipe.max_tokens)
    batching = Batching(wanted.batch_size, "batch", recipe.self_negatives, None, "graph")
    masking = Masking(wanted.mask_rate if tokenizer.mask_id is not None else 0.0)
    return [
        {"times": times} | _epoch(synthetic_texts(triples * times, tokenizer, wanted.seed), batching, masking)
        for times in SIZES
    ]


def _epoch(texts: TrainingTexts, batching: Batching, masking: Masking) -> dict[str, Any]:
    memory = EntityMemory(torch.zeros(texts.graph.num_entities, 1), None, batching.self_negatives)
    memory.fill(memory.vectors.clone(), 0)
    making, rivals, steps, begin = 0.0, 0.0, 0, time.process_time()
    for batch in epoch_batches(texts, batching, masking, (0, 0), 0, skip=0, shared_rows=True):
        made = time.process_time()
        memory.rivals(batch, steps)
        making, rivals, steps = making + made - begin, rivals + time.process_time() - made, steps + 1
        begin = time.process_time()
    directed = len(texts.known.answers)
    return {
        "triples": directed,
        "entities": texts.graph.num_entities,
        "steps": steps,
        "seconds": making,
        "rivals_seconds": rivals,
        "microseconds_per_triple": 1e6 * making / directed,
        "rivals_microseconds_per_triple": 1e6 * rivals / directed,
    }


def synthetic_texts(triples: int, tokenizer: TextTokenizer, seed: int) -> TrainingTexts:
    """A random graph whose texts are random ids, of lengths like WN18RR's (10 to max_tokens)."""
    rng = np.random.default_rng(seed)
    entities = max(2, triples // TRIPLES_PER_ENTITY)
    empty = np.zeros((0, 3), dtype=np.int64)
    graph = KnowledgeGraph(
        name="synthetic",
        entity_ids=tuple(map(str, range(entities))),
        names=("",) * entities,
        descriptions=("",) * entities,
        relation_ids=tuple(map(str, range(RELATIONS))),
        relation_texts=("",) * RELATIONS,
        train=rng.integers(0, [entities, RELATIONS, entities], (triples, 3)),
        valid=empty,
        test=empty,
    )
    known = graph.train_known()
    longest = tokenizer.max_tokens

    def table(texts: int) -> TokenTable:
        lengths: IntArray = rng.integers(min(10, longest), longest + 1, texts)
        total = int(lengths.sum())
        ids = rng.integers(1, 1000, total).astype(np.int32)
        return TokenTable(ids, np.zeros(total, np.int32), np.concatenate([[0], np.cumsum(lengths)]))

    return TrainingTexts(graph, known, table(len(known.keys)), table(entities), tokenizer, Templates())
