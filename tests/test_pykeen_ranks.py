"""Our ranks are PyKEEN's, to the last digit, on scores full of ties. Needs pykeen; slow because that is heavy."""

import warnings

import numpy as np
import pytest
import torch

from pmd.serving.known import KnownAnswers
from pmd.serving.ranking import rank_triples

pytestmark = pytest.mark.slow

E, R = 40, 4
KINDS = ("optimistic", "realistic", "pessimistic")


@pytest.fixture(scope="module")
def evaluator_class():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluation = pytest.importorskip("pykeen.evaluation", reason="pykeen is not installed")
    return evaluation.RankBasedEvaluator


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(11)
    every = np.array([(h, r, t) for h in range(E) for r in range(R) for t in range(E)])
    chosen = every[rng.choice(len(every), 1500, replace=False)]
    table = rng.integers(0, 8, (E, 2 * R, E)).astype(np.float32) / 8  # eight values: nearly every rank is a tie
    return chosen[:1100], chosen[1100:1300], chosen[1300:], table


@pytest.mark.parametrize("filtered", [True, False])
def test_ranks_equal_pykeens(evaluator_class, example, filtered):
    train, valid, test, table = example
    known = KnownAnswers.from_triples(E, R, train, valid, test)
    ours = rank_triples(lambda heads, relations: table[heads, relations], test, known, block=17)
    evaluator = evaluator_class(filtered=filtered, clear_on_finalize=False)
    everything = torch.from_numpy(np.concatenate([train, valid, test]))
    triples = torch.from_numpy(test)
    for target, column, relation_shift in (("tail", 0, 0), ("head", 2, R)):
        scores = torch.from_numpy(table[test[:, column], test[:, 1] + relation_shift])
        gold = triples[:, 2 if target == "tail" else 0]
        true_scores = scores[torch.arange(len(test)), gold][:, None]
        if filtered:
            other = 2 if target == "tail" else 0
            same = (everything[None, :, 1] == triples[:, None, 1]) & (
                everything[None, :, column] == triples[:, None, column]
            )
            row, fact = same.nonzero(as_tuple=True)
            scores = scores.clone()
            scores[row, everything[fact, other]] = float("nan")  # PyKEEN's mark of what is not ranked
            scores[torch.arange(len(test)), gold] = true_scores[:, 0]
        evaluator.process_scores_(triples, target, scores, true_scores=true_scores)
    for kind in KINDS:
        mine = ours.rank(kind, filtered=filtered)
        for side, values in zip(("tail", "head"), np.split(mine, 2), strict=True):
            theirs = np.concatenate([np.asarray(part) for part in evaluator.ranks[side, kind]])
            np.testing.assert_array_equal(values, theirs)
    results = evaluator.finalize()
    theirs = results.get_metric("both.realistic.inverse_harmonic_mean_rank")
    assert (1 / ours.rank(filtered=filtered)).mean() == pytest.approx(theirs, abs=1e-6)  # theirs is a float32 mean
