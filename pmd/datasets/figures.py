"""Figures of a graph's texts and degrees: what is missing, too long, the same, or connected to nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pmd.graph import KnowledgeGraph
from pmd.serving.texts import Templates, fill
from pmd.serving.tokenization import TextTokenizer

TOKEN_TEXTS = 100_000  # more texts than this are sampled
COUNTED_TOKENS = 1000  # longer texts count as this long
BIN_TOKENS, BINS = 5, 40


def summary(values: ArrayLike) -> dict[str, float | None]:
    """Least, median, mean, 95th percentile and largest; None of no values."""
    array = np.asarray(values)
    if not len(array):
        return dict.fromkeys(("min", "median", "mean", "p95", "max"))
    median, p95 = np.percentile(array, [50, 95], method="nearest")  # lengths and degrees that occur
    return {
        "min": float(array.min()),
        "median": float(median),
        "mean": float(array.mean()),
        "p95": float(p95),
        "max": float(array.max()),
    }


def descriptions(graph: KnowledgeGraph, limit: int) -> dict[str, Any]:
    """Entities without a description, and the words of those that have one.

    A description of more words than the limit of tokens is certainly cut, whatever the tokenizer.
    """
    words = [len(text.split()) for text in graph.descriptions if text]
    over = sum(count > limit for count in words)
    return {"missing": graph.num_entities - len(words), "over_limit": over, "words": summary(words)}


def same_relation_texts(graph: KnowledgeGraph) -> list[dict[str, Any]]:
    """Relations that read the same but for case and spaces, so that no encoder tells them apart."""
    groups = defaultdict(list)
    for key, text in zip(graph.relation_ids, graph.relation_texts, strict=True):
        groups[" ".join(text.lower().split())].append(key)
    return [{"text": text, "relations": keys} for text, keys in groups.items() if len(keys) > 1]


def same_entity_texts(graph: KnowledgeGraph) -> int:
    """Entities that share both name and description with another one."""
    counts = Counter(zip(graph.names, graph.descriptions, strict=True))
    return sum(count for count in counts.values() if count > 1)


def degrees(graph: KnowledgeGraph) -> dict[str, Any]:
    """Training triples of each entity: summary, entities without any, and counts by powers of two."""
    ends = np.bincount(graph.train[:, [0, 2]].ravel(), minlength=graph.num_entities)
    loops = np.bincount(graph.train[graph.train[:, 0] == graph.train[:, 2], 0], minlength=graph.num_entities)
    degree = ends - loops
    bins = []
    low = 1
    while low <= degree.max(initial=0):
        inside = int(((degree >= low) & (degree < 2 * low)).sum())
        bins.append({"from": low, "to": 2 * low - 1, "entities": inside})
        low *= 2
    return {**summary(degree), "isolated": int((degree == 0).sum()), "histogram": bins}


def token_lengths(graph: KnowledgeGraph, tokenizer_json: str, limit: int) -> dict[str, Any]:
    """Tokens of "name: description" against the limit at which texts are cut; a seeded sample of large graphs."""
    chosen = np.arange(graph.num_entities)
    if len(chosen) > TOKEN_TEXTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(chosen), TOKEN_TEXTS, replace=False))
    texts = [_entity_text(graph, int(entity)) for entity in chosen]
    lengths = TextTokenizer(tokenizer_json, COUNTED_TOKENS)(texts).lengths
    over = lengths > limit
    counts = np.bincount(np.minimum(lengths // BIN_TOKENS, BINS - 1), minlength=BINS)
    return {
        "limit": limit,
        "texts": len(texts),
        "sampled": len(texts) < graph.num_entities,
        "over_limit": int(over.sum()),
        "over_limit_share": float(over.mean()) if len(over) else None,
        **summary(lengths),
        "histogram": _histogram(counts.tolist()),
    }


def _entity_text(graph: KnowledgeGraph, entity: int) -> str:
    """The entity's own text, without the neighbours' names that may follow."""
    name, description = graph.names[entity], graph.descriptions[entity]
    templates = Templates()
    if description:
        return fill(templates.entity, name=name, description=description)
    return fill(templates.bare_entity, name=name)


def _histogram(counts: Sequence[int]) -> list[dict[str, int | None]]:
    last = max((place for place, count in enumerate(counts) if count), default=-1)
    return [
        {
            "from": place * BIN_TOKENS,
            "to": None if place == BINS - 1 else (place + 1) * BIN_TOKENS - 1,
            "texts": counts[place],
        }
        for place in range(last + 1)
    ]
