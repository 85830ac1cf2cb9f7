"""Metrics of a model on a split: encode all, score, and rank by the one ranking rule."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pmd.batches import TrainingTexts
from pmd.model import BiEncoder, encode_table
from pmd.serving.known import SPLIT_NAMES, IntArray, KnownAnswers
from pmd.serving.neighbours import reranked
from pmd.serving.ranking import FloatArray, Metrics, ScoreQueries, evaluate
from pmd.serving.vectors import GRID


def model_scores(model: BiEncoder, texts: TrainingTexts) -> ScoreQueries:
    """Cosines of directed queries against every entity, float32 (Q, E), by the torch model."""
    entities = on_grid(encode_table(model, "entity", texts.entities))
    builder = texts.graph.texts(texts.templates)

    def scores(heads: IntArray, relations: IntArray) -> FloatArray:
        queries = on_grid(encode_table(model, "query", texts.tokenizer(builder.queries(heads, relations))))
        return np.asarray(((queries @ entities.T) / GRID**2).float().cpu().numpy())

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
) -> tuple[Metrics | None, Metrics | None]:
    """Metrics of a split, plain and re-ranked by (hops, weight); None for an empty split or no re-ranking."""
    triples = known.triples(SPLIT_NAMES.index(split))  # as a bundle ranks them: no triple twice, none of two splits
    if not len(triples):
        return None, None
    scores = model_scores(model, texts)
    plain = evaluate(scores, triples, known)
    if rerank is None:
        return plain, None
    hops, weight = rerank
    return plain, evaluate(reranked(scores, texts.graph.neighbours(), hops=hops, weight=weight), triples, known)
