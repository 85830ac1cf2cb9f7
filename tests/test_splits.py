"""Splits made with a seed: nothing lost, nothing twice, every entity kept in train unless asked otherwise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmd.datasets import SplitRule
from pmd.datasets.keys import triple_keys
from pmd.datasets.splits import resplit
from pmd.errors import DatasetError
from tests.graphs import graph_of, id_triples

E, R = 9, 3
TRIPLES = st.lists(
    st.tuples(st.integers(0, E - 1), st.integers(0, R - 1), st.integers(0, E - 1)), min_size=1, max_size=60
)
SHARES = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.45])


def made(triples, **changes):
    return graph_of(triples, entities=E, relations=R, **changes)


def split_or_none(graph, rule):
    try:
        return resplit(graph, rule)
    except DatasetError as error:
        assert "can be held out" in str(error)
        return None


def all_triples(graph):
    return [triple for split in ("train", "valid", "test") for triple in id_triples(graph, split)]


@given(TRIPLES, st.integers(0, 99), SHARES, SHARES)
def test_every_entity_and_relation_stays_in_train(triples, seed, valid, test):
    graph = split_or_none(made(triples), SplitRule(seed, valid, test))
    if graph is None:
        return
    assert sorted(all_triples(graph)) == sorted(set(all_triples(made(triples))))
    entities, relations = set(graph.train[:, [0, 2]].ravel()), set(graph.train[:, 1])
    for held in (graph.valid, graph.test):
        assert set(held[:, [0, 2]].ravel()) <= entities
        assert set(held[:, 1]) <= relations
    assert len(graph.valid) <= round(valid * len(set(triples)))
    assert len(graph.test) <= round(test * len(set(triples)))


@given(TRIPLES, st.integers(0, 99), SHARES, SHARES)
def test_inductive_triples_each_have_an_unseen_entity(triples, seed, valid, test):
    graph = split_or_none(made(triples), SplitRule(seed, valid, test, inductive=True))
    if graph is None:
        return
    assert sorted(all_triples(graph)) == sorted(set(all_triples(made(triples))))
    train, valid_entities = (set(rows[:, [0, 2]].ravel()) for rows in (graph.train, graph.valid))
    for head, _, tail in graph.valid:
        assert head not in train or tail not in train
    for head, _, tail in graph.test:
        assert {head, tail} - train - valid_entities


def test_shares_seeds_and_order():
    rng = np.random.default_rng(3)
    graph = graph_of(rng.integers(0, [200, 5, 200], (4000, 3)), entities=200, relations=5)
    count = len(np.unique(graph.train, axis=0))
    one, again, other = (resplit(graph, SplitRule(seed)) for seed in (1, 1, 2))
    assert [len(one.valid), len(one.test)] == [round(0.1 * count)] * 2
    np.testing.assert_array_equal(one.train, again.train)
    assert set(id_triples(one, "test")) != set(id_triples(other, "test"))
    place = {tuple(row): number for number, row in reversed(list(enumerate(graph.train.tolist())))}
    order = [place[tuple(row)] for row in one.train.tolist()]
    assert order == sorted(order)
    unseen = resplit(graph, SplitRule(1, 0.1, 0.2, inductive=True))
    assert 0.15 * count < len(unseen.test) <= 0.2 * count
    assert 0.05 * count < len(unseen.valid) <= 0.15 * count


def test_repeats_are_left_out_and_told(caplog):
    graph = resplit(made([(0, 0, 1), (1, 0, 0)] * 10 + [(0, 0, 0)]), SplitRule(valid=0.3, test=0.3))
    assert len(all_triples(graph)) == 3
    assert "18 repeated triples left out" in caplog.text


def test_fewer_than_asked_for_are_told(caplog):
    star = [(0, 0, leaf) for leaf in range(1, 9)] + [(1, 0, 2)]
    graph = resplit(made(star), SplitRule(valid=0.2, test=0.2))
    assert len(graph.valid) + len(graph.test) in (1, 2)
    assert "2 and 2 triples asked for" in caplog.text


def test_all_splits_of_a_graph_are_pooled():
    graph = made([(0, 0, 1), (1, 0, 2)], valid=[(2, 0, 3)], test=[(3, 0, 0), (0, 0, 2), (1, 0, 3)])
    assert sorted(all_triples(resplit(graph, SplitRule(test=0.3)))) == sorted(all_triples(graph))


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (-0.1, 0.1), (1.0, 0.0), (float("nan"), 0.1)])
def test_shares_that_leave_nothing_are_refused(valid, test):
    with pytest.raises(DatasetError, match="must be at least 0 and sum to less than 1"):
        SplitRule(0, valid, test)


def test_keys_tell_triples_apart():
    triples = np.array([(h, r, t) for h in range(4) for r in range(3) for t in range(4)])
    assert len(np.unique(triple_keys(triples, 4, 3))) == len(triples)
    with pytest.raises(DatasetError, match="too many to compare"):
        triple_keys(triples, 2**31, 2)
