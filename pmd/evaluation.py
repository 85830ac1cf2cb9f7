"""Metrics of a model on a split: encode all, score, and rank by the one ranking rule."""

from __future__ import annotations

import numpy as np

from pmd.batches import TrainingTexts
from pmd.model import BiEncoder, encode_table
from pmd.serving.known import IntArray, KnownAnswers
from pmd.serving.neighbours import reranked
from pmd.serving.ranking import FloatArray, Metrics, ScoreQueries, evaluate


def model_scores(model: BiEncoder, texts: TrainingTexts) -> ScoreQueries:
    """Cosines of directed queries against every entity, float32 (Q, E), by the torch model."""
    entities = encode_table(model, "entity", texts.entities).cpu().numpy()
    builder = texts.graph.texts(texts.templates)

    def scores(heads: IntArray, relations: IntArray) -> FloatArray:
        table = texts.tokenizer([builder.query(int(h), int(r)) for h, r in zip(heads, relations, strict=True)])
        return np.asarray(encode_table(model, "query", table).cpu().numpy() @ entities.T)

    return scores


def evaluate_model(
    model: BiEncoder,
    texts: TrainingTexts,
    split: str,
    known: KnownAnswers,
    rerank: tuple[int, float] | None = None,
) -> tuple[Metrics | None, Metrics | None]:
    """Metrics of a split, plain and re-ranked by (hops, weight); None for an empty split or no re-ranking."""
    triples = texts.graph.split(split)
    if not len(triples):
        return None, None
    scores = model_scores(model, texts)
    plain = evaluate(scores, triples, known)
    if rerank is None:
        return plain, None
    hops, weight = rerank
    return plain, evaluate(reranked(scores, texts.graph.neighbours(), hops=hops, weight=weight), triples, known)
