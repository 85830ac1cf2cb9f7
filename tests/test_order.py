"""Batches along the graph: every row once, neighbours together, and fewer entities a batch."""

import numpy as np
import pytest

from pmd.batches import Batching, Masking, epoch_rows, make_batch, steps_per_epoch, tokenise
from pmd.graph import KnowledgeGraph
from pmd.order import graph_places
from pmd.prefetch import ahead
from pmd.serving.neighbours import NeighbourGraph
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from tests.tiny_encoder import WORDS, tiny_graph, tiny_tokenizer


def clusters(groups=12, size=8):
    """A graph of cliques without edges between them."""
    rng = np.random.default_rng(0)
    name = rng.permutation(groups * size)
    triples = [
        (name[g * size + a], int(rng.integers(2)), name[g * size + b])
        for g in range(groups)
        for a in range(size)
        for b in range(size)
        if a < b
    ]
    names = tuple(f"{WORDS[i % 12]} {WORDS[i // 12 % 12]}" for i in range(groups * size))
    none = np.zeros((0, 3), np.int64)
    ids = tuple(map(str, range(groups * size)))
    train = np.array(triples, np.int64)
    return KnowledgeGraph("c", ids, names, ("",) * len(ids), ("r", "s"), ("is a", "near"), train, none, none)


def test_places_are_a_permutation_that_keeps_components_together():
    graph = clusters()
    places = graph_places(graph.neighbours(), np.random.default_rng(0))
    assert sorted(places) == list(range(graph.num_entities))
    for head, _, tail in graph.train:
        assert places[head] // 8 == places[tail] // 8, "a clique of 8 takes 8 places in a row"
    again = graph_places(graph.neighbours(), np.random.default_rng(0))
    other = graph_places(graph.neighbours(), np.random.default_rng(1))
    np.testing.assert_array_equal(places, again)
    assert (places != other).any()


def test_a_path_is_walked_from_neighbour_to_neighbour():
    length = 500
    chain = np.stack([np.arange(length - 1), np.zeros(length - 1, int), np.arange(1, length)], axis=1)
    places = graph_places(NeighbourGraph.from_triples(length, chain), np.random.default_rng(3))
    assert (np.abs(np.diff(places)) == 1).mean() > 0.99


@pytest.mark.parametrize("answers", [None, 2])
def test_every_answer_once_an_epoch_in_any_order(answers):
    texts = tokenise(tiny_graph(), TextTokenizer(tiny_tokenizer().to_str(), 50), Templates(neighbours=3))
    for order in ("random", "graph"):
        batching = Batching(4, "batch", True, answers, order)
        steps = epoch_rows(texts, batching, np.random.default_rng(0))
        assert len(steps) == steps_per_epoch(texts.known, batching)
        places = np.concatenate([np.arange(first, last) for rows in steps for _, first, last in rows])
        assert sorted(places) == list(range(len(texts.known.answers)))


def test_graph_batches_hold_fewer_entities():
    texts = tokenise(clusters(), TextTokenizer(tiny_tokenizer().to_str(), 50), Templates(neighbours=0))

    def candidates(order):
        batching = Batching(24, "batch", True, None, order)
        steps = epoch_rows(texts, batching, np.random.default_rng(0))
        rng = np.random.default_rng(0)
        return np.mean(
            [len(make_batch(texts, r, batching, Masking(0.0), rng, shared_rows=True).entity_ids) for r in steps]
        )

    assert candidates("graph") < 0.6 * candidates("random")


def test_items_made_ahead_are_the_same_items():
    made = []

    def items():
        for number in range(7):
            made.append(number)
            yield number

    stream = ahead(items(), depth=2)
    assert next(stream) == 0
    assert list(stream) == [1, 2, 3, 4, 5, 6]
    assert made == list(range(7))


def test_an_error_while_making_ahead_reaches_the_reader():
    def items():
        yield 1
        raise ValueError("broken")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        list(stream)
