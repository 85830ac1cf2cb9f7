"""The gate: exact figures, and nothing that is broken gets through."""

import dataclasses
import json
import math

import numpy as np
import pytest

from pmd.export import parity as parity_module
from pmd.export.making import Making
from pmd.export.parity import GATES, Limit, Parity, Reference, gate_of, kept_share, queries_of, split_to_compare
from pmd.serving.known import TEST, TRAIN, VALID, KnownAnswers, directed
from pmd.serving.ranking import evaluate
from pmd.serving.vectors import VectorTable

ENTITIES, RELATIONS, WIDTH = 30, 3, 16


def unit(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(3)
    every = np.array(
        [(h, r, t) for h in range(ENTITIES) for r in range(RELATIONS) for t in range(ENTITIES) if h != t]
    )
    chosen = every[rng.choice(len(every), 120, replace=False)]
    return KnownAnswers.from_triples(ENTITIES, RELATIONS, chosen[:80], chosen[80:100], chosen[100:])


@pytest.fixture(scope="module")
def vectors(known):
    rng = np.random.default_rng(4)
    queries = rng.normal(size=(len(queries_of(known, VALID)[0]), WIDTH))
    return unit(queries), unit(rng.normal(size=(ENTITIES, WIDTH)))


@pytest.fixture(scope="module")
def reference(known, vectors):
    return Reference.of(known, VALID, *vectors)


def test_queries_are_the_distinct_ones_of_the_split(known):
    heads, relations = queries_of(known, VALID)
    wanted = {(int(h), int(r)) for h, r, _ in directed(known.triples(VALID), RELATIONS)}
    assert len(heads) == len(wanted)
    assert set(zip(heads.tolist(), relations.tolist(), strict=True)) == wanted


def test_the_training_split_stands_in_for_an_empty_one(known):
    assert split_to_compare(known) == VALID
    assert split_to_compare(known.of_split(TRAIN, TEST)) == TRAIN


def test_mrr_is_that_of_the_ranking_rule(known, vectors, reference):
    queries, entities = vectors
    row = {
        pair: index
        for index, pair in enumerate(zip(*(part.tolist() for part in queries_of(known, VALID)), strict=True))
    }

    def scores(heads, relations):
        return queries[[row[pair] for pair in zip(heads.tolist(), relations.tolist(), strict=True)]] @ entities.T

    assert reference.split == VALID
    assert reference.mrr == pytest.approx(evaluate(scores, known.triples(VALID), known)["mrr"], abs=1e-12)


def compared(reference, queries, table, entities=None, chosen=(0, 5, ENTITIES - 1)):
    """Parity of a bundle whose entity tower gives `entities`, those of the reference if left out."""
    index = np.array(chosen)
    again = (reference.entities if entities is None else entities)[index]
    return reference.compare(queries, table, (index, again), None)


def test_a_perfect_copy(vectors, reference):
    queries, entities = vectors
    parity = compared(reference, queries, VectorTable(entities))
    assert parity.texts == len(queries) + 3
    assert parity.max_cosine_gap == pytest.approx(0, abs=1e-12)
    assert parity.max_score_gap < 5e-7
    assert (parity.mrr_kept, parity.mrr_kept_error) == (1, 0)
    assert all(parity.failures(gate) == [] for gate in GATES.values())


@pytest.mark.parametrize("chunk", [1, 7, 8192])
@pytest.mark.parametrize("block", [1, 5, 512])
def test_figures_do_not_depend_on_chunks_and_blocks(vectors, reference, monkeypatch, chunk, block):
    monkeypatch.setattr(parity_module, "CHUNK", chunk)
    monkeypatch.setattr(parity_module, "BLOCK", block)
    queries, entities = vectors
    moved = queries.copy()
    moved[3] = -moved[3]  # all of one query's scores are far off: the worst 1 % come from one block
    table = VectorTable.quantised(entities)
    parity = compared(reference, moved, table)
    gaps = np.sort(
        np.abs(queries.astype(np.float64) @ entities.T - moved @ table.vectors().astype(np.float64).T).ravel()
    )
    assert parity.max_score_gap == pytest.approx(gaps[-1], abs=5e-7)
    assert parity.p99_score_gap == pytest.approx(gaps[-math.ceil(0.01 * len(gaps))], abs=5e-7)
    assert parity.max_cosine_gap == pytest.approx(2, abs=1e-6)


def test_ranks_are_those_of_the_bundles_own_scores(known, vectors, reference):
    queries, entities = vectors
    table = VectorTable.quantised(entities)
    keys = queries_of(known, VALID)
    row = {pair: index for index, pair in enumerate(zip(*(part.tolist() for part in keys), strict=True))}

    def scores(heads, relations):
        return table.scores(queries[[row[pair] for pair in zip(heads.tolist(), relations.tolist(), strict=True)]])

    mrr = evaluate(scores, known.triples(VALID), known)["mrr"]
    parity = compared(reference, queries, table)
    assert parity.mrr_bundle == pytest.approx(mrr, abs=1e-12)
    assert parity.mrr_kept == pytest.approx(mrr / reference.mrr, abs=1e-12)


def test_vectors_of_another_length_have_the_same_cosine(vectors, reference):
    """int8 rows are not of unit length to the last digit; that is no gap in direction."""
    queries, entities = vectors
    parity = compared(reference, queries, VectorTable((entities * 1.01).astype(np.float32)))
    assert parity.max_cosine_gap == pytest.approx(0, abs=1e-12)
    assert parity.max_score_gap > 1e-4


def test_an_entity_tower_that_gives_other_vectors_shows(vectors, reference):
    """Stored vectors are torch's; what the tower would make of a new entity is looked at beside them."""
    queries, entities = vectors
    other = entities.copy()
    other[5] = -other[5]
    parity = compared(reference, queries, VectorTable(entities), other)
    assert parity.max_cosine_gap == pytest.approx(2, abs=1e-6)
    assert parity.max_score_gap < 5e-7


@pytest.mark.parametrize("side", ["queries", "entities"])
def test_one_nan_fails_the_float_gate(vectors, reference, side):
    broken = {"queries": vectors[0].copy(), "entities": vectors[1].copy()}
    broken[side][5, 1] = np.nan
    parity = compared(reference, broken["queries"], VectorTable(vectors[1]), broken["entities"])
    assert math.isnan(parity.max_cosine_gap)
    assert math.isnan(parity.max_score_gap)
    assert [failure.limit.measure for failure in parity.failures(GATES["fp32"])] == ["max_score_gap"]


def test_a_report_is_read_back(vectors, reference):
    for parity in (compared(reference, vectors[0], VectorTable(vectors[1])), Parity.broken("valid", 10, 0.5)):
        report = json.loads(json.dumps(parity.report(GATES["int8"])))
        again, gate = Parity.read(report)
        assert (again.report(gate), gate) == (report, GATES["int8"])


def test_bounds_of_a_gate_can_be_changed():
    changed = gate_of(Making("int8"), {"mrr_kept": 0.9, "max_score_gap": 0.1})
    assert changed == (Limit("mrr_kept", at_least=0.9), Limit("max_score_gap", at_most=0.1))
    assert gate_of(Making("fp32")) == GATES["fp32"]
    assert gate_of(Making("fp32", width=8))[0].measure == "mrr_kept", "narrow scores are others by design"


@pytest.mark.parametrize("precision", GATES)
def test_a_bundle_without_numbers_fails_every_gate(precision):
    parity = Parity.broken("valid", 10, 0.5)
    assert len(parity.failures(GATES[precision])) == len(GATES[precision])
    report = parity.report(GATES[precision])
    assert report["max_score_gap"] is None
    assert report["mrr_torch"] == 0.5
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("limit", "value", "holds"),
    [
        (Limit("a", at_most=1.0), 1.0, True),
        (Limit("a", at_most=1.0), 1.0000001, False),
        (Limit("a", at_least=0.995), 0.995, True),
        (Limit("a", at_least=0.995), 0.9949999, False),
        (Limit("a", at_most=1.0), math.nan, False),
        (Limit("a", at_least=0.0), math.nan, False),
        (Limit("a"), math.nan, False),
    ],
)
def test_limits(limit, value, holds):
    assert limit.holds(value) is holds


def test_all_failures_are_reported_with_value_and_limit():
    gate = (
        Limit("max_score_gap", at_most=1e-4),
        Limit("mrr_kept", at_least=0.995, standard_errors=2),
        Limit("max_cosine_gap", at_most=1),
    )
    parity = Parity("valid", 5, 0.1, 0.25, 0.2, 0.8, 0.4, 0.5, 0.125, 0.1)
    assert [str(failure) for failure in parity.failures(gate)] == [
        "max_score_gap is 0.25, needed at most 0.0001",
        "mrr_kept is 0.5 +- 0.12, needed at least 0.995 within 2 standard errors",
    ]


def test_the_report_is_flat_and_names_its_gate():
    parity = Parity("valid", 5, 0.1, 0.25, 0.2, 0.8, 0.4, 0.5, 0.1, 0.1)
    report = parity.report(GATES["int8"])
    assert report.pop("gate") == {"mrr_kept": {"at_least": 0.995, "standard_errors": 2.0}}
    assert report == dataclasses.asdict(parity)


def test_standard_error_of_what_is_kept():
    """Against the spread over many draws of the triples."""
    rng = np.random.default_rng(0)
    before = rng.integers(1, 12, 800).astype(float)
    after = np.maximum(1, before + rng.integers(-1, 2, 800) * (rng.random(800) < 0.3))
    draws = [rng.integers(0, 800, 800) for _ in range(600)]
    spread = np.std([(1 / after[draw]).mean() / (1 / before[draw]).mean() for draw in draws])
    kept, error = kept_share(after, before)
    assert kept == (1 / after).mean() / (1 / before).mean()
    assert error == pytest.approx(spread, rel=0.1)


def test_a_loss_counts_when_it_is_more_than_chance_makes():
    (limit,) = GATES["int8"]
    assert limit.holds(0.994, 0.002)  # one rank moved on a toy graph, or 1,300 ranks and ordinary luck
    assert not limit.holds(0.994, 0.0002)  # the same loss over 100,000 ranks
    assert not limit.holds(0.5, 0.1)
    assert not limit.holds(math.nan, 0.1)
    assert not limit.holds(0.994, math.nan)


@pytest.mark.parametrize("count", [2, 12, 1300])
def test_a_broken_ranking_fails_at_any_size(count):
    """Every answer from the top to the middle: no sample is too small to say so."""
    kept, error = kept_share(np.full(count, 8.0), np.ones(count))
    assert not GATES["int8"][0].holds(kept, error)
