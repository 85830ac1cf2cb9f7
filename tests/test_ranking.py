"""Filtered realistic ranks, against a hand-computed example and the definition written as loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmd.serving.known import KnownAnswers
from pmd.serving.ranking import RankingError, count_ranks, evaluate, rank_triples, summarise

E, R = 5, 1
TRIPLE = st.tuples(st.integers(0, E - 1), st.integers(0, R - 1), st.integers(0, E - 1))
FEW_VALUES = st.sampled_from([-1.0, 0.0, 0.25, 0.5])  # few values, so that most ranks are ties


def brute_rank(scores: np.ndarray, gold: int, known: set[int], kind: str = "realistic") -> float:
    """The definition: mean of the best and the worst place among the entities that are not other known answers."""
    rivals = [scores[e] for e in range(len(scores)) if e != gold and e not in known]
    best = 1 + sum(score > scores[gold] for score in rivals)
    worst = 1 + sum(score >= scores[gold] for score in rivals)
    return {"optimistic": best, "realistic": (best + worst) / 2, "pessimistic": worst}[kind]


def table_scores(table: np.ndarray):
    """A ScoreQueries that looks scores up in (E, 2R, E)."""
    return lambda heads, relations: table[heads, relations]


def test_hand_computed_filtered_rank_with_ties():
    """Scores 0.9 0.7 0.7 0.7 0.1; gold is entity 2.

    Unfiltered: one better (0), tied with 1 and 3: ranks 2 to 4, middle 3. Entity 0 is a known answer: ranks 1 to
    3, middle 2. With entity 3 known as well: ranks 1 to 2, middle 1.5.
    """
    scores = np.array([[0.9, 0.7, 0.7, 0.7, 0.1]], np.float32)
    row, gold = np.array([0]), np.array([2])

    def rank(*known: int) -> float:
        return count_ranks(scores, row, gold, (np.zeros(len(known), np.int64), np.array(known, np.int64))).rank()[0]

    assert rank() == 3.0
    assert rank(2) == 3.0  # the gold answer is always known; it must not be taken from its own ties
    assert rank(0, 2) == 2.0
    assert rank(0, 2, 3) == 1.5


def test_evaluate_by_hand_and_without_the_filter():
    """(0, r, 1) in training, (0, r, 2) in test.

    Tail query (0, r): scores .1 .9 .5 .5 .2; gold 2 is beaten by 1, which is known, and tied with 3: rank 1.5.
    Head query (2, r inverse): scores .3 .8 .0 .0 .3; gold 0 is beaten by 1 and tied with 4: rank 2.5.
    """
    table = np.zeros((E, 2, E), np.float32)
    table[0, 0] = [0.1, 0.9, 0.5, 0.5, 0.2]
    table[2, 1] = [0.3, 0.8, 0.0, 0.0, 0.3]
    train, test = np.array([[0, 0, 1]]), np.array([[0, 0, 2]])
    metrics = evaluate(table_scores(table), test, KnownAnswers.from_triples(E, R, train, test[:0], test))
    assert metrics["tail"] == {
        "mrr": 1 / 1.5,
        "mean_rank": 1.5,
        "hits@1": 0,
        "hits@3": 1,
        "hits@10": 1,
        "queries": 1,
    }
    assert metrics["head"] == {
        "mrr": 1 / 2.5,
        "mean_rank": 2.5,
        "hits@1": 0,
        "hits@3": 1,
        "hits@10": 1,
        "queries": 1,
    }
    assert metrics["mrr"] == pytest.approx((1 / 1.5 + 1 / 2.5) / 2)
    assert (metrics["mean_rank"], metrics["queries"]) == (2.0, 2)
    # The same with a filter that knows of no training answer: the tail falls behind entity 1.
    broken = evaluate(table_scores(table), test, KnownAnswers.from_triples(E, R, test))
    assert broken["tail"]["mean_rank"] == 2.5


@given(
    st.lists(TRIPLE, min_size=1, max_size=8, unique=True),
    st.lists(TRIPLE, max_size=8),
    hnp.arrays(np.float32, (E, 2 * R, E), elements=FEW_VALUES),
    st.integers(1, 12),
)
def test_ranks_equal_the_definition_for_every_block_size(test, train, table, block):
    rows = np.array(train, dtype=np.int64).reshape(-1, 3)
    known = KnownAnswers.from_triples(E, R, rows, rows[:0], np.array(test))
    facts = {*train, *test}
    ranks = rank_triples(table_scores(table), np.array(test), known, block=block)
    for kind in ("optimistic", "realistic", "pessimistic"):
        for filtered, filter_facts in ((True, facts), (False, set())):
            expected = [
                brute_rank(table[h, r], t, {x for a, b, x in filter_facts if (a, b) == (h, r)}, kind)
                for h, r, t in test
            ] + [
                brute_rank(table[t, r + R], h, {x for x, b, y in filter_facts if (b, y) == (r, t)}, kind)
                for h, r, t in test
            ]
            np.testing.assert_array_equal(ranks.rank(kind, filtered=filtered), expected)
    others = [len({x for a, b, x in facts if (a, b) == (h, r)} - {t}) for h, r, t in test]
    np.testing.assert_array_equal(ranks.candidates()[: len(test)], E - np.array(others))
    np.testing.assert_array_equal(ranks.candidates(filtered=False), E)


@given(hnp.arrays(np.float32, (1, 7), elements=FEW_VALUES), st.permutations(range(7)))
def test_ranks_do_not_depend_on_the_order_of_entities(scores, order):
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    ranks = [count_ranks(scores, np.array([0]), np.array([gold]), nothing).rank()[0] for gold in range(7)]
    shuffled = scores[:, order]
    again = [
        count_ranks(shuffled, np.array([0]), np.array([order.index(gold)]), nothing).rank()[0] for gold in range(7)
    ]
    assert ranks == again


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    scores = np.array([[0.1, bad, 0.2]], np.float32)
    with pytest.raises(RankingError, match="NaN or infinite"):
        count_ranks(scores, np.array([0]), np.array([0]), (np.zeros(0, np.int64), np.zeros(0, np.int64)))


def test_each_query_is_scored_once():
    asked = []

    def scores(heads, relations):
        asked.extend(zip(heads.tolist(), relations.tolist(), strict=True))
        return np.zeros((len(heads), E), np.float32)

    test = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3]])
    rank_triples(scores, test, KnownAnswers.from_triples(E, R, test), block=2)
    assert sorted(asked) == [(0, 0), (1, 1), (2, 1), (3, 1)]


def test_an_empty_split_is_refused():
    with pytest.raises(RankingError, match="split is empty"):
        summarise(np.zeros(0))
