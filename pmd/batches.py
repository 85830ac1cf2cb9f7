"""What a step works on: each distinct query once, each candidate once, and who is an answer of whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pmd.graph import KnowledgeGraph
from pmd.masking import WeightArray, mask_tokens
from pmd.order import graph_places, ordered_rows
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
    """Q queries and C candidates. positive, negative: bool (Q, C); known answers that are neither take no part.

    query_ids: int64 (Q,), places in the table of queries. entity_ids: int64 (C,), rising. heads: int64 (Q,).
    known: the training answers of the queries, query (N,) and entity (N,). All but the targets stay on the CPU.
    """

    queries: PackedTexts
    entities: PackedTexts
    positive: Tensor
    negative: Tensor
    query_ids: IntArray
    entity_ids: IntArray
    heads: IntArray
    known: tuple[IntArray, IntArray]

    @property
    def num_triples(self) -> int:
        """Directed training triples in this batch."""
        return int(self.positive.sum())

    @property
    def num_masked(self) -> int:
        """Masked tokens of both sides."""
        return self.queries.num_masked + self.entities.num_masked


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
    order: str = "random"
    """`random`, or `graph`: batches follow a random walk over the training graph, so that entities repeat."""


@dataclass(frozen=True)
class Masking:
    """How much of an epoch is masked, and where: weights of every token of both tables, None for evenly."""

    rate: float
    weights: dict[str, WeightArray] | None = None


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


def epoch_rows(texts: TrainingTexts, batching: Batching, rng: np.random.Generator) -> list[IntArray]:
    """One epoch's steps, each int64 (rows, 3): query index, first and last + 1 place of its answers.

    Every training answer of every directed query comes up exactly once an epoch.
    """
    known = texts.known
    starts, ends = known.offsets[:-1], known.offsets[1:]
    query: IntArray = np.arange(len(starts))
    if batching.answers_per_query is not None:
        parts = -(-(ends - starts) // batching.answers_per_query)
        query, part = spread(np.zeros_like(parts), parts)
        starts = starts[query] + part * batching.answers_per_query
        ends = np.minimum(starts + batching.answers_per_query, ends[query])
    rows = np.stack([query, starts, ends], axis=1)
    if batching.order == "graph":
        heads = known.queries()[query, 0]
        rows = ordered_rows(rows, heads, graph_places(texts.graph.neighbours(), rng), rng)
    else:
        rows = rows[rng.permutation(len(rows))]
    steps = [rows[first : first + batching.batch_size] for first in range(0, len(rows), batching.batch_size)]
    return [steps[step] for step in rng.permutation(len(steps))] if batching.order == "graph" else steps


def steps_per_epoch(known: KnownAnswers, batching: Batching) -> int:
    """Steps of every epoch."""
    most = batching.answers_per_query or max(1, known.num_entities)
    rows = int((-(-np.diff(known.offsets) // most)).sum())
    return -(-rows // batching.batch_size)


def make_batch(
    texts: TrainingTexts,
    rows: IntArray,
    batching: Batching,
    masking: Masking,
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
    known = texts.known.pairs(heads, relations)
    positive, negative = _targets(
        heads, candidates, (answer_row, answers), known, batching, texts.graph.num_entities
    )
    weights = masking.weights or {}

    def packed(side: str, table: TokenTable, taken: IntArray) -> PackedTexts:
        own = weights[side][table.places(taken)] if side in weights else None
        masked_table, masked = mask_tokens(table.take(taken), masking.rate, texts.tokenizer, rng, own)
        return pack(masked_table, masked, shared_rows=shared_rows)

    return Batch(
        queries=packed("query", texts.queries, rows[:, 0]),
        entities=packed("entity", texts.entities, candidates),
        positive=torch.from_numpy(positive),
        negative=torch.from_numpy(negative),
        query_ids=rows[:, 0],
        entity_ids=candidates,
        heads=heads,
        known=known,
    )


def _targets(
    heads: IntArray,
    candidates: IntArray,
    answers: tuple[IntArray, IntArray],
    known: tuple[IntArray, IntArray],
    batching: Batching,
    num_entities: int,
) -> tuple[IntArray, IntArray]:
    """Masks of positives and negatives, bool (Q, C). A known training answer is never a negative."""
    column = np.full(num_entities, -1)
    column[candidates] = np.arange(len(candidates))
    negative = rivals(heads, column, len(candidates), known, self_negatives=batching.self_negatives)
    positive = np.zeros_like(negative)
    positive[answers[0], column[answers[1]]] = True
    return positive, negative


def rivals(
    heads: IntArray, column: IntArray, columns: int, known: tuple[IntArray, IntArray], *, self_negatives: bool
) -> IntArray:
    """Which of some candidates are negatives of which query, bool (Q, columns).

    column: int64 (E,), each entity's column, -1 where it is no candidate. known: the queries' training answers as
    query and entity, none of which is a negative; a query's own head is one only with `self_negatives`.
    """
    negative = np.ones((len(heads), columns), dtype=bool)
    query, entity = known
    seen = column[entity] >= 0
    negative[query[seen], column[entity[seen]]] = False
    if not self_negatives:
        rows = np.flatnonzero(column[heads] >= 0)
        negative[rows, column[heads[rows]]] = False
    return negative


def epoch_batches(
    texts: TrainingTexts,
    batching: Batching,
    masking: Masking,
    seed: tuple[int, ...],
    epoch: int,
    *,
    skip: int,
    shared_rows: bool,
) -> Iterator[Batch]:
    """The batches of one epoch from step `skip` on. The same seed gives the same batches, resumed or not."""
    order = epoch_rows(texts, batching, np.random.default_rng([*seed, epoch, 0]))
    for step in range(skip, len(order)):
        rng = np.random.default_rng([*seed, epoch, 1 + step])
        yield make_batch(texts, order[step], batching, masking, rng, shared_rows=shared_rows)
