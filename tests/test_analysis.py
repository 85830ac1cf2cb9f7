"""Breakdowns, intervals and the paired test, on counts small enough to check by hand."""

import numpy as np
import pytest

from pmd.serving import analysis
from pmd.serving.known import KnownAnswers, directed
from pmd.serving.ranking import RankingError, Ranks, rank_triples

E, R = 6, 2
TRAIN = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [1, 1, 2], [2, 1, 3]])
TEST = np.array([[0, 0, 4], [3, 1, 1], [1, 1, 5]])


@pytest.fixture
def known():
    return KnownAnswers.from_triples(E, R, TRAIN, TRAIN[:0], TEST)


def ranks(values):
    values = np.array(values)
    zero = np.zeros_like(values)
    return Ranks(np.stack([values - 1, zero, zero, zero, zero]), num_entities=101)


def test_amri_is_one_for_perfect_ranks_and_zero_for_chance():
    assert analysis.figures(ranks([1, 1, 1]))["amri"] == 1.0
    assert analysis.figures(ranks([51, 51]))["amri"] == 0.0
    assert analysis.figures(ranks([101, 101]))["amri"] == -1.0


def test_macro_counts_each_query_once():
    wanted = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [1, 0, 2]])
    found = analysis.macro(np.array([1.0, 1.0, 1.0, 4.0]), wanted)
    assert found["mrr"] == pytest.approx((1 + 1 / 4) / 2)
    assert (found["mean_rank"], found["hits@1"], found["queries"]) == (2.5, 0.5, 2)


def test_parts(known):
    wanted = directed(TEST, R)
    assert {k: v.tolist() for k, v in analysis.by_relation(wanted).items()} == {
        "0": [0], "1": [1, 2], "2": [3], "3": [4, 5],
    }  # fmt: skip
    # relation 0 has three answers a head and one head an answer: 1-N, its inverse N-1; relation 1 is 1-1.
    categories = {k: v.tolist() for k, v in analysis.by_category(wanted, known).items()}
    assert categories == {"1-N": [0], "N-1": [3], "1-1": [1, 2, 4, 5]}
    # degrees in training: 0 has 3, 1 has 2, 2 has 3, 3 has 2, 4 and 5 have none
    degrees = {k: v.tolist() for k, v in analysis.by_degree(wanted, known).items()}
    assert degrees == {"0": [0, 2], "1-2": [1, 4, 5], "3-9": [3]}
    seen = {k: v.tolist() for k, v in analysis.by_seen(wanted, known).items()}
    assert seen == {"unseen": [0, 2, 3, 5], "seen": [1, 4]}


def test_valid_and_test_define_no_category_or_degree(known):
    wanted = directed(TEST, R)
    alone = KnownAnswers.from_triples(E, R, TRAIN)
    for part in (analysis.by_category, analysis.by_degree, analysis.by_seen):
        ours, theirs = part(wanted, known), part(wanted, alone)
        assert {k: v.tolist() for k, v in ours.items()} == {k: v.tolist() for k, v in theirs.items()}


def test_analyse_adds_up(known):
    table = np.random.default_rng(0).choice([0.1, 0.2, 0.3], size=(E, 2 * R, E))
    found_ranks = rank_triples(lambda h, r: table[h, r], TEST, known)
    found = analysis.analyse(found_ranks, TEST, known)
    assert set(found) == {"filtered", "raw", "by_relation", "by_category", "by_degree", "by_seen", "interval"}
    for kind, values in found["filtered"].items():
        assert values["mrr"] == pytest.approx((values["head"]["mrr"] + values["tail"]["mrr"]) / 2), kind
    both = found["filtered"]
    assert both["optimistic"]["mrr"] >= both["realistic"]["mrr"] >= both["pessimistic"]["mrr"]
    assert found["raw"]["realistic"]["mean_rank"] >= both["realistic"]["mean_rank"]
    for name in ("by_relation", "by_category", "by_degree", "by_seen"):
        total = sum(part["queries"] * part["mrr"] for part in found[name].values())
        assert total / (2 * len(TEST)) == pytest.approx(both["realistic"]["mrr"]), name


def test_interval_holds_the_mean_narrows_and_repeats():
    rng = np.random.default_rng(1)
    few, many = (ranks(rng.integers(1, 50, 2 * n)) for n in (50, 5000))
    narrow, wide = (analysis.intervals(r, samples=200)["mrr"] for r in (many, few))
    for found, r in ((narrow, many), (wide, few)):
        assert found[0] < (1 / r.rank()).mean() < found[1]
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 4
    assert analysis.intervals(few, samples=200) == analysis.intervals(few, samples=200)


def test_paired_test_tells_a_real_gap_from_none():
    rng = np.random.default_rng(2)
    base = rng.integers(1, 50, 2000)
    better = np.maximum(1, base - (rng.random(2000) < 0.2))
    found = analysis.paired_test(ranks(better), ranks(base))
    assert found["difference"] > 0
    assert found["interval"][0] > 0
    assert found["p_value"] < 0.01
    shuffled = base.copy()
    swap = rng.permutation(2000)
    shuffled[swap[:1000]], shuffled[swap[1000:]] = base[swap[1000:]], base[swap[:1000]]
    assert analysis.paired_test(ranks(shuffled), ranks(base))["p_value"] > 0.05
    same = analysis.paired_test(ranks(base), ranks(base))
    assert (same["difference"], same["p_value"]) == (0.0, 1.0)
    with pytest.raises(RankingError, match="same triples"):
        analysis.paired_test(ranks(base), ranks(base[:10]))
