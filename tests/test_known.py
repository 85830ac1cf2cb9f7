"""Known answers and the neighbour graph, against plain dictionaries and sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pmd.serving.known import (
    TEST,
    TRAIN,
    VALID,
    KnownAnswers,
    _sorted_as_columns,
    _sorted_as_one_key,
    directed,
    spread,
)
from pmd.serving.neighbours import NeighbourGraph, reranked

E, R = 6, 2
TRIPLE = st.tuples(st.integers(0, E - 1), st.integers(0, R - 1), st.integers(0, E - 1))
TRIPLES = st.lists(TRIPLE, max_size=15)


def rows(triples: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def brute_answers(*splits: list[tuple[int, int, int]]) -> dict[tuple[int, int], dict[int, int]]:
    """(head, directed relation) -> {answer: the first split that has it}."""
    answers: dict[tuple[int, int], dict[int, int]] = {}
    for split, triples in enumerate(splits):
        for head, relation, tail in triples:
            answers.setdefault((head, relation), {}).setdefault(tail, split)
            answers.setdefault((tail, relation + R), {}).setdefault(head, split)
    return answers


def as_dict(known: KnownAnswers) -> dict[tuple[int, int], dict[int, int]]:
    found = {}
    for row, (head, relation) in enumerate(known.queries()):
        span = slice(known.offsets[row], known.offsets[row + 1])
        found[int(head), int(relation)] = dict(
            zip(known.answers[span].tolist(), known.splits[span].tolist(), strict=True)
        )
    return found


def test_directed_puts_inverses_behind():
    assert directed(rows([(1, 0, 2)]), R).tolist() == [[1, 0, 2], [2, 2, 1]]


@given(TRIPLES, TRIPLES, TRIPLES)
def test_structure_equals_dictionaries(train, valid, test):
    known = KnownAnswers.from_triples(E, R, rows(train), rows(valid), rows(test))
    expected = brute_answers(train, valid, test)
    assert as_dict(known) == expected
    for head in range(E):
        for relation in range(2 * R):
            assert known.answers_of(head, relation).tolist() == sorted(expected.get((head, relation), {}))
            starts, ends = known.spans(np.array([head]), np.array([relation]))
            start, end = known.span(head, relation)
            assert (start, end) == (starts[0], ends[0]) or start - end == starts[0] - ends[0] == 0


@given(TRIPLES, TRIPLES, TRIPLES)
def test_triples_come_back_once_from_the_first_split(train, valid, test):
    known = KnownAnswers.from_triples(E, R, rows(train), rows(valid), rows(test))
    assert {tuple(t) for t in known.triples(TRAIN).tolist()} == set(train)
    assert {tuple(t) for t in known.triples(VALID).tolist()} == set(valid) - set(train)
    assert {tuple(t) for t in known.triples(TEST).tolist()} == set(test) - set(train) - set(valid)


@given(TRIPLES, TRIPLES)
def test_of_split_equals_building_from_that_split(train, valid):
    known = KnownAnswers.from_triples(E, R, rows(train), rows(valid))
    assert as_dict(known.of_split(TRAIN)) == brute_answers(train)


@given(TRIPLES, st.lists(st.tuples(st.integers(0, E - 1), st.integers(0, 2 * R - 1)), max_size=6))
def test_pairs_list_the_answers_of_each_query_in_turn(train, queries):
    known = KnownAnswers.from_triples(E, R, rows(train))
    asked = np.array(queries, dtype=np.int64).reshape(-1, 2)
    query, entity = known.pairs(asked[:, 0], asked[:, 1])
    expected = [
        (row, e) for row, (h, r) in enumerate(queries) for e in sorted(brute_answers(train).get((h, r), {}))
    ]
    assert list(zip(query.tolist(), entity.tolist(), strict=True)) == expected


def test_no_triples_at_all_is_a_structure_without_answers():
    for known in (KnownAnswers.from_triples(E, R), KnownAnswers.from_triples(E, R, rows([]), rows([]))):
        assert known.offsets.tolist() == [0]
        assert known.answers_of(0, 0).tolist() == []
        assert known.triples(TEST).shape == (0, 3)


@given(TRIPLES, TRIPLES, st.integers(0, E - 1))
def test_reindexed_equals_building_from_the_renamed_triples(train, test, gone):
    """Removing an entity and adding two at the end, at once."""
    place = np.arange(E)
    place[gone + 1 :] -= 1
    place[gone] = -1

    def renamed(triples):
        return [(int(place[h]), r, int(place[t])) for h, r, t in triples if gone not in (h, t)]

    known = KnownAnswers.from_triples(E, R, rows(train), rows([]), rows(test)).reindexed(place, E + 1)
    expected = KnownAnswers.from_triples(E + 1, R, rows(renamed(train)), rows([]), rows(renamed(test)))
    for name in ("keys", "offsets", "answers", "splits"):
        np.testing.assert_array_equal(getattr(known, name), getattr(expected, name))
        assert getattr(known, name).dtype == getattr(expected, name).dtype
    graph = NeighbourGraph.from_triples(E, rows(train)).reindexed(place, E + 1)
    expected_graph = NeighbourGraph.from_triples(E + 1, rows(renamed(train)))
    np.testing.assert_array_equal(graph.offsets, expected_graph.offsets)
    np.testing.assert_array_equal(graph.targets, expected_graph.targets)


@given(TRIPLES, st.integers(0, E - 1), st.integers(0, 4))
def test_within_equals_breadth_first_search(train, start, hops):
    graph = NeighbourGraph.from_triples(E, rows(train))
    seen = {start}
    for _ in range(hops):
        seen |= {t for h, _, t in train if h in seen} | {h for h, _, t in train if t in seen}
    assert graph.within(start, hops).tolist() == sorted(seen - {start})
    direct = {t for h, _, t in train if h == start} | {h for h, _, t in train if t == start}
    assert graph.neighbours(start).tolist() == sorted(direct - {start})


def test_reranked_adds_the_weight_to_near_entities_and_leaves_the_plain_scores_alone():
    graph = NeighbourGraph.from_triples(4, rows([(0, 0, 1), (1, 0, 2)]))
    plain = np.zeros((2, 4), np.float32)
    scores = reranked(lambda heads, relations: plain, graph, hops=1, weight=0.5)
    assert scores(np.array([0, 1]), np.array([0, 0])).tolist() == [[0, 0.5, 0, 0], [0.5, 0, 0.5, 0]]
    assert not plain.any()


@given(TRIPLES, TRIPLES, TRIPLES)
def test_the_sort_by_columns_gives_the_same(train, valid, test):
    """Graphs too large for one 64-bit key take the other way; no such graph fits in a test."""
    parts = [rows(train), rows(valid), rows(test)]
    for one, other in zip(_sorted_as_one_key(E, R, parts), _sorted_as_columns(E, R, parts), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_spread_names_every_place_of_every_range():
    owner, place = spread(np.array([7, 2, 9]), np.array([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert place.tolist() == [7, 8, 9, 10, 11]
