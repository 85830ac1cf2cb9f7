"""What a step works on: each distinct query once, each candidate once, and who is an answer of whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pmd.graph import KnowledgeGraph
from pmd.masking import mask_tokens
from pmd.packing import PackedTexts, pack
from pmd.serving.known import IntArray, KnownAnswers, spread
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer, TokenTable
from pmd.token_tables import content_key, token_table


@dataclass(frozen=True)
class TrainingTexts:
    """A graph tokenised for one encoder. queries: table of the K training queries; entities: table of all E."""

    graph: KnowledgeGraph
    known: KnownAnswers
    queries: TokenTable
    entities: TokenTable
    tokenizer: TextTokenizer
    templates: Templates


@dataclass(frozen=True)
class Batch:
    """Q queries and C candidates. positive, negative: bool (Q, C); known answers that are neither take no part."""

    queries: PackedTexts
    entities: PackedTexts
    positive: Tensor
    negative: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(
            self.queries.to(device),
            self.entities.to(device),
            self.positive.to(device),
            self.negative.to(device),
        )

    @property
    def num_triples(self) -> int:
        """Directed training triples in this batch."""
        return int(self.positive.sum())


@dataclass(frozen=True)
class Batching:
    """How an epoch is cut into steps."""

    batch_size: int
    """Queries a step."""
    candidates: str
    """`all`: every entity competes; `batch`: the answers and the heads of the step's queries."""
    self_negatives: bool
    """Whether a query's own head is one of its negatives."""
    answers_per_query: int | None
    """With `batch`: a query with more answers is split over several rows; null keeps all together."""


def tokenise(
    graph: KnowledgeGraph, tokenizer: TextTokenizer, templates: Templates, cache: Path | None = None
) -> TrainingTexts:
    """Word and tokenise every entity and every training query of a graph, once; `cache` keeps the tables."""
    known = graph.train_known()
    folder = cache / "tokens" / content_key(graph, tokenizer, templates) if cache else None
    return TrainingTexts(
        graph=graph,
        known=known,
        queries=token_table(
            folder, "queries", tokenizer, lambda: graph.texts(templates).queries(*known.queries().T)
        ),
        entities=token_table(folder, "entities", tokenizer, lambda: graph.texts(templates).entities()),
        tokenizer=tokenizer,
        templates=templates,
    )


def epoch_rows(known: KnownAnswers, batching: Batching, rng: np.random.Generator) -> list[IntArray]:
    """One epoch's steps, each int64 (rows, 3): query index, first and last + 1 place of its answers.

    Every training answer of every directed query comes up exactly once an epoch.
    """
    starts, ends = known.offsets[:-1], known.offsets[1:]
    query: IntArray = np.arange(len(starts))
    if batching.answers_per_query is not None:
        parts = -(-(ends - starts) // batching.answers_per_query)
        query, part = spread(np.zeros_like(parts), parts)
        starts = starts[query] + part * batching.answers_per_query
        ends = np.minimum(starts + batching.answers_per_query, ends[query])
    rows = np.stack([query, starts, ends], axis=1)[rng.permutation(len(query))]
    return [rows[first : first + batching.batch_size] for first in range(0, len(rows), batching.batch_size)]


def make_batch(
    texts: TrainingTexts,
    rows: IntArray,
    batching: Batching,
    mask_rate: float,
    rng: np.random.Generator,
    *,
    shared_rows: bool,
) -> Batch:
    """The batch of one step; queries and candidates are masked once, for teacher and student alike."""
    heads, relations = texts.known.queries()[rows[:, 0]].T
    answer_row, place = spread(rows[:, 1], rows[:, 2] - rows[:, 1])
    answers = texts.known.answers[place]
    if batching.candidates == "all":
        candidates = np.arange(texts.graph.num_entities)
    else:
        candidates = np.unique(np.concatenate([answers, heads] if batching.self_negatives else [answers]))
    positive, negative = _targets(texts.known, heads, relations, candidates, (answer_row, answers), batching)
    queries, masked_queries = mask_tokens(texts.queries.take(rows[:, 0]), mask_rate, texts.tokenizer, rng)
    entities, masked_entities = mask_tokens(texts.entities.take(candidates), mask_rate, texts.tokenizer, rng)
    return Batch(
        queries=pack(queries, masked_queries, shared_rows=shared_rows),
        entities=pack(entities, masked_entities, shared_rows=shared_rows),
        positive=torch.from_numpy(positive),
        negative=torch.from_numpy(negative),
    )


def _targets(
    known: KnownAnswers,
    heads: IntArray,
    relations: IntArray,
    candidates: IntArray,
    answers: tuple[IntArray, IntArray],
    batching: Batching,
) -> tuple[IntArray, IntArray]:
    """Masks of positives and negatives, bool (Q, C). A known training answer is never a negative."""
    column = np.full(known.num_entities, -1)
    column[candidates] = np.arange(len(candidates))
    negative = np.ones((len(heads), len(candidates)), dtype=bool)
    query, entity = known.pairs(heads, relations)
    seen = column[entity] >= 0
    negative[query[seen], column[entity[seen]]] = False
    own = column[heads]
    if not batching.self_negatives:
        rows = np.flatnonzero(own >= 0)
        negative[rows, own[rows]] = False
    positive = np.zeros_like(negative)
    positive[answers[0], column[answers[1]]] = True
    return positive, negative


def epoch_batches(
    texts: TrainingTexts,
    batching: Batching,
    mask_rate: float,
    seed: tuple[int, ...],
    epoch: int,
    *,
    skip: int,
    shared_rows: bool,
) -> Iterator[Batch]:
    """The batches of one epoch from step `skip` on. The same seed gives the same batches, resumed or not."""
    order = epoch_rows(texts.known, batching, np.random.default_rng([*seed, epoch, 0]))
    for step in range(skip, len(order)):
        rng = np.random.default_rng([*seed, epoch, 1 + step])
        yield make_batch(texts, order[step], batching, mask_rate, rng, shared_rows=shared_rows)
