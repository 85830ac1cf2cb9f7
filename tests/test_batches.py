"""Batches: every answer once an epoch, no known answer as a negative, nothing from valid or test."""

from dataclasses import replace

import numpy as np
import pytest

from pmd.batches import Batching, Masking, epoch_batches, epoch_rows, make_batch, tokenise
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from tests.tiny_encoder import tiny_graph, tiny_tokenizer

ALL = Batching(batch_size=8, candidates="all", self_negatives=True, answers_per_query=None)
IN_BATCH = Batching(batch_size=8, candidates="batch", self_negatives=True, answers_per_query=2)


@pytest.fixture(scope="module")
def texts():
    return tokenise(tiny_graph(), TextTokenizer(tiny_tokenizer().to_str(), 50), Templates(neighbours=3))


def train_answers(graph):
    directed = {(int(h), int(r), int(t)) for h, r, t in graph.train}
    return directed | {(t, r + graph.num_relations, h) for h, r, t in directed}


@pytest.mark.parametrize("batching", [ALL, IN_BATCH])
def test_an_epoch_holds_every_directed_training_triple_once(texts, batching):
    seen = []
    for rows in epoch_rows(texts, batching, np.random.default_rng(0)):
        assert len(rows) <= batching.batch_size
        for query, start, end in rows:
            head, relation = texts.known.queries()[query]
            seen += [(int(head), int(relation), int(t)) for t in texts.known.answers[start:end]]
    assert len(seen) == len(set(seen)) == 2 * len(texts.graph.train)
    assert set(seen) == train_answers(texts.graph)


@pytest.mark.parametrize("batching", [ALL, IN_BATCH, replace(IN_BATCH, self_negatives=False)])
def test_targets(texts, batching):
    known = train_answers(texts.graph)
    for rows in epoch_rows(texts, batching, np.random.default_rng(1)):
        batch = make_batch(texts, rows, batching, Masking(0.0), np.random.default_rng(0), shared_rows=True)
        candidates = _candidates(texts, rows, batching)
        for row, (query, start, end) in enumerate(rows):
            head, relation = (int(v) for v in texts.known.queries()[query])
            answers = set(texts.known.answers[start:end].tolist())
            for column, entity in enumerate(candidates):
                assert bool(batch.positive[row, column]) == (entity in answers)
                is_known = (head, relation, entity) in known
                is_own = entity == head and not batching.self_negatives
                assert bool(batch.negative[row, column]) == (not is_known and not is_own)


def _candidates(texts, rows, batching):
    if batching.candidates == "all":
        return list(range(texts.graph.num_entities))
    answers = np.concatenate([texts.known.answers[start:end] for _, start, end in rows])
    heads = texts.known.queries()[rows[:, 0], 0] if batching.self_negatives else np.array([], int)
    return sorted({int(entity) for entity in np.concatenate([answers, heads])})


def test_valid_and_test_triples_cannot_reach_training(texts):
    """Dropping both splits changes no token, no target and no neighbour text."""
    graph = texts.graph
    without = replace(graph, valid=graph.valid[:0], test=graph.test[:0])
    other = tokenise(without, texts.tokenizer, texts.templates)
    np.testing.assert_array_equal(other.queries.ids, texts.queries.ids)
    np.testing.assert_array_equal(other.entities.ids, texts.entities.ids)
    np.testing.assert_array_equal(other.known.answers, texts.known.answers)


def test_a_query_never_reads_its_own_answers(texts):
    graph, builder = texts.graph, texts.graph.texts(texts.templates)
    names_shown = 0
    for head, relation, tail in train_answers(graph):
        shown = builder.query(head, relation)[0].replace(":", " ").split()[1:]
        names_shown += len(shown)
        assert graph.names[tail] not in shown
    assert names_shown > 0, "the neighbours must be there for the test to mean something"


def test_skipping_gives_the_same_remaining_batches(texts):
    whole = list(epoch_batches(texts, ALL, Masking(0.3), (0, 1), 2, skip=0, shared_rows=True))
    rest = list(epoch_batches(texts, ALL, Masking(0.3), (0, 1), 2, skip=3, shared_rows=True))
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert one.queries.ids.equal(other.queries.ids)
        assert one.entities.masked.equal(other.entities.masked)
        assert one.positive.equal(other.positive)
