"""The trainer's scores are the runtime's to the last bit, and do not depend on how they are computed."""

import numpy as np
import pytest
import torch

from pmd.batches import tokenise
from pmd.encoder import load_encoder, resolve_encoder
from pmd.evaluation import model_scores, on_grid
from pmd.serving.known import TEST, directed
from pmd.serving.ranking import rank_triples
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from pmd.serving.vectors import GRID, VectorTable
from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_encoder


def unit(rng, count, width=384):
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_scores_equal_the_runtimes_bit_for_bit():
    rng = np.random.default_rng(0)
    queries, entities = unit(rng, 37), unit(rng, 501)
    whole = ((on_grid(torch.from_numpy(queries)) @ on_grid(torch.from_numpy(entities)).T) / GRID**2).float().numpy()
    np.testing.assert_array_equal(whole, VectorTable(entities).scores(queries))


def test_the_order_of_summation_does_not_matter():
    rng = np.random.default_rng(1)
    queries, entities = on_grid(torch.from_numpy(unit(rng, 20))), on_grid(torch.from_numpy(unit(rng, 300)))
    order = torch.from_numpy(rng.permutation(384))
    assert (queries @ entities.T).equal(queries[:, order] @ entities[:, order].T)
    one_by_one = torch.stack([entities @ query for query in queries])
    assert (queries @ entities.T).equal(one_by_one)


@pytest.fixture
def one_or_two_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_ranks_do_not_depend_on_blocks_threads_or_the_order_of_triples(tmp_path, one_or_two_threads):
    graph = tiny_graph()
    model = load_encoder(resolve_encoder(str(write_encoder(tmp_path / "encoder"))), dropout=0.0, temperature=0.05)
    texts = tokenise(graph, TextTokenizer(tiny_tokenizer().to_str(), 50), Templates(neighbours=3))
    known = graph.known()
    triples = known.triples(TEST)
    asked = directed(triples, known.num_relations)[:, :2]
    whole = rank_triples(model_scores(model, texts, asked), triples, known)
    for threads in (1, 2):
        one_or_two_threads(threads)
        for block in (1, 5, 512):
            again = rank_triples(model_scores(model, texts, asked), triples, known, block=block)
            np.testing.assert_array_equal(again.counts, whole.counts)
    order = np.random.default_rng(0).permutation(len(triples))
    shuffled = rank_triples(model_scores(model, texts, asked), triples[order], known)
    np.testing.assert_array_equal(shuffled.counts, whole.take(np.concatenate([order, order + len(order)])).counts)
