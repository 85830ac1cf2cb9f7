"""Metrics of a model on a split: encode all, score, and rank by the one ranking rule."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pmd.batches import TrainingTexts
from pmd.model import BiEncoder, encode_table
from pmd.serving.known import SPLIT_NAMES, IntArray, KnownAnswers, directed
from pmd.serving.neighbours import reranked
from pmd.serving.ranking import FloatArray, Metrics, ScoreQueries, evaluate
from pmd.serving.vectors import GRID


def model_scores(
    model: BiEncoder, texts: TrainingTexts, queries: IntArray, entities: Tensor | None = None
) -> ScoreQueries:
    """Cosines of directed queries against every entity, float32 (Q, E), by the torch model.

    queries: int64 (N, 2), head and relation of every query that will be asked, each encoded once whatever is asked
    of it. entities: (E, D) vectors that were made before.
    """
    if entities is None:
        entities = encode_table(model, "entity", texts.entities)
    candidates = on_grid(entities)
    keys = queries[:, 1] * texts.graph.num_entities + queries[:, 0]
    keys, first = np.unique(keys, return_index=True)
    words = texts.graph.texts(texts.templates).queries(*queries[first].T)
    vectors = on_grid(encode_table(model, "query", texts.tokenizer(words)))

    def scores(heads: IntArray, relations: IntArray) -> FloatArray:
        asked = np.searchsorted(keys, relations.astype(np.int64) * texts.graph.num_entities + heads)
        wanted = vectors[torch.from_numpy(asked).to(vectors.device)]
        return np.asarray(((wanted @ candidates.T) / GRID**2).float().cpu().numpy())

    return scores


def on_grid(vectors: Tensor) -> Tensor:
    """Unit vectors (N, D) as whole numbers of grid steps, float64.

    Their dot products are exact in float64 whatever the order of summation, so scores are those of
    `pmd.serving.vectors.VectorTable.scores` to the last bit, on all cores or on a GPU.
    """
    return (vectors.double() * GRID).round()


def evaluate_model(
    model: BiEncoder,
    texts: TrainingTexts,
    split: str,
    known: KnownAnswers,
    rerank: tuple[int, float] | None = None,
    entities: Tensor | None = None,
) -> tuple[Metrics | None, Metrics | None]:
    """Metrics of a split, plain and re-ranked by (hops, weight); None for an empty split or no re-ranking.

    entities: (E, D) vectors that were made before.
    """
    triples = known.triples(SPLIT_NAMES.index(split))  # as a bundle ranks them: no triple twice, none of two splits
    if not len(triples):
        return None, None
    scores = model_scores(model, texts, directed(triples, known.num_relations)[:, :2], entities)
    plain = evaluate(scores, triples, known)
    if rerank is None:
        return plain, None
    hops, weight = rerank
    return plain, evaluate(reranked(scores, texts.graph.neighbours(), hops=hops, weight=weight), triples, known)
