"""Narrower vectors: what is kept of them, the graphs that make them, and bundles of them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pmd.export.bundle import write_bundle
from pmd.export.cli import main
from pmd.export.graph import export_tower
from pmd.export.loading import load_stage
from pmd.export.making import Making
from pmd.export.parity import Reference, cosine_gap, queries_of
from pmd.export.source import Run
from pmd.export.width import Narrowing
from pmd.serving import QueryError, Scorer
from pmd.serving.bundle import ENTITY, QUERY
from pmd.serving.encoder import TowerEncoder
from pmd.serving.known import VALID, KnownAnswers
from pmd.serving.vectors import VectorTable
from tests.tiny_encoder import tiny_graph
from tests.tiny_exports import export_bundles
from tests.tiny_run import write_run
from tests.tiny_towers import in_onnx, in_torch, random_inputs, tiny_tower

FULL, NARROW = 32, 8


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def decaying(seed, count, width):
    """Unit vectors that differ much in few directions, none of them an axis."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    return unit(rng.normal(size=(count, width)) * 0.7 ** np.arange(width) @ turn)


# ---- the projection -------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 24), st.data())
def test_columns_are_orthonormal(seed, count, width, data):
    """Of fewer vectors than numbers as well, which leave directions free."""
    narrow = data.draw(st.integers(1, width))
    matrix = Narrowing.of(np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32), narrow).matrix
    assert (matrix.dtype, matrix.shape) == (np.float32, (width, narrow))
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(narrow), rtol=0, atol=1e-5)


@given(st.integers(0, 10_000))
def test_the_largest_number_of_a_column_is_positive(seed):
    matrix = Narrowing.of(decaying(seed, 50, 12), 5).matrix
    assert (matrix[np.abs(matrix).argmax(axis=0), np.arange(5)] > 0).all()


def test_signs_are_not_the_solvers(monkeypatch):
    vectors = decaying(0, 50, 12)
    want, solve = Narrowing.of(vectors, 12).matrix, np.linalg.eigh

    def turned(matrix):
        values, directions = solve(matrix)
        return values, directions * np.where(np.arange(12) % 2, 1, -1)

    monkeypatch.setattr(np.linalg, "eigh", turned)
    np.testing.assert_array_equal(Narrowing.of(vectors, 12).matrix, want)


def test_a_narrower_one_has_the_same_first_columns():
    vectors = decaying(1, 50, 12)
    np.testing.assert_array_equal(Narrowing.of(vectors, 4).matrix, Narrowing.of(vectors, 9).matrix[:, :4])


def test_the_order_of_entities_does_not_matter():
    vectors = decaying(2, 50, 12)
    np.testing.assert_allclose(
        Narrowing.of(vectors[::-1], 5).matrix, Narrowing.of(vectors, 5).matrix, rtol=0, atol=1e-5
    )


@given(st.integers(0, 10_000))
def test_the_full_width_changes_no_score(seed):
    entities, queries = decaying(seed, 40, 24), decaying(seed + 1, 10, 24)
    narrowing = Narrowing.of(entities, 24)
    scores = narrowing.narrowed(queries) @ narrowing.narrowed(entities).T
    np.testing.assert_allclose(scores, queries @ entities.T, rtol=0, atol=1e-6)
    np.testing.assert_allclose(narrowing.lifted(narrowing.narrowed(queries)), queries, rtol=0, atol=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_narrow_vectors_are_of_unit_length_and_lifting_keeps_them(seed, width):
    entities = decaying(seed, 40, 12)
    narrowing = Narrowing.of(entities, width)
    narrow = narrowing.narrowed(entities)
    lifted = narrowing.lifted(narrow)
    assert (narrow.dtype, narrow.shape, lifted.shape) == (np.float32, (40, width), (40, 12))
    np.testing.assert_allclose(np.linalg.norm(narrow, axis=1), 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(lifted @ lifted.T, narrow @ narrow.T, rtol=0, atol=1e-5)
    np.testing.assert_allclose(narrowing.narrowed(lifted), narrow, rtol=0, atol=1e-5)


def lost(scores, entities):
    """Of the entities' dot products with each other."""
    return np.abs(scores @ scores.T - entities @ entities.T).mean()


@given(st.integers(0, 10_000), st.sampled_from([4, 8, 16]))
def test_it_loses_less_than_dropping_the_last_numbers(seed, width):
    entities = decaying(seed, 80, 32)
    dropped = lost(unit(entities[:, :width]), entities)
    assert lost(Narrowing.of(entities, width).narrowed(entities), entities) < 0.5 * dropped


@given(st.integers(0, 10_000))
def test_no_other_directions_keep_more(seed):
    """Of the squared length of vectors, about the origin: their mean is a direction like any other."""
    rng = np.random.default_rng(seed)
    entities = decaying(seed, 40, 12) + rng.normal(size=12).astype(np.float32)
    other, _ = np.linalg.qr(rng.normal(size=(12, 4)))
    kept = np.square(entities @ Narrowing.of(entities, 4).matrix).sum()
    assert kept > np.square(entities @ other).sum()
    assert kept == pytest.approx(np.square(np.linalg.svd(entities, compute_uv=False)[:4]).sum(), rel=1e-4)


# ---- graphs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tower():
    return tiny_tower()


@pytest.fixture(scope="module")
def narrowing():
    return Narrowing.of(decaying(3, 40, FULL), NARROW)


@pytest.fixture(scope="module")
def narrow_graph(tower, narrowing):
    return export_tower(tower, narrowing)


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_the_graph_narrows_as_numpy_does(tower, narrowing, narrow_graph, padding):
    inputs = random_inputs(6, 12, padding)
    found, hidden = in_onnx(narrow_graph.model, inputs)
    wide, wide_hidden = in_torch(tower, inputs)
    np.testing.assert_allclose(found, narrowing.narrowed(wide), rtol=0, atol=1e-5)
    assert hidden.shape == (6, 12, NARROW)
    real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(hidden[real], (wide_hidden @ narrowing.matrix)[real], rtol=0, atol=1e-4)
    pooled = unit((hidden * inputs["attention_mask"][..., None]).sum(axis=1))  # as Hub tools do it
    np.testing.assert_allclose(pooled, found, rtol=0, atol=1e-5)


def test_a_narrow_graph_is_fused_in_full(narrow_graph):
    assert narrow_graph.complete
    assert narrow_graph.fused["Attention"] == 2


# ---- parity ---------------------------------------------------------------------------------------------------


def test_the_cosine_gap_compares_lifted_vectors():
    """Also where the narrow vectors are as wide: they are turned."""
    graph = tiny_graph()
    known = KnownAnswers.from_triples(12, 3, graph.train, graph.valid, graph.test)
    queries, entities = decaying(5, len(queries_of(known, VALID)[0]), FULL), decaying(6, 12, FULL)
    reference = Reference.of(known, VALID, queries, entities)
    for width in (FULL, NARROW):
        narrowing = Narrowing.of(np.concatenate([entities, queries]), width)
        ours, table = narrowing.narrowed(queries), VectorTable(narrowing.narrowed(entities))
        sampled = (np.arange(12), table.vectors())
        parity = reference.compare(ours, table, sampled, narrowing)
        pairs = ((queries, ours), (entities, table.vectors()))
        want = max(cosine_gap(theirs, narrowing.lifted(narrow)) for theirs, narrow in pairs)
        assert parity.max_cosine_gap == pytest.approx(want, abs=1e-9)
        assert (parity.max_cosine_gap < 1e-6) == (width == FULL)


# ---- bundles --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def bundles(run, tmp_path_factory):
    """Of width 8: their scores are others by design, and the toy graph's ranking follows them."""
    root = tmp_path_factory.mktemp("narrow")
    return export_bundles(root, ["fp32", "int8"], "--width", str(NARROW), "--gate", "mrr_kept=0.5", run=run)


@pytest.fixture(scope="module")
def loaded(run):
    source = Run.open(run)
    return load_stage(source, source.students[2], source.graph())


@pytest.fixture(scope="module")
def ready(loaded):
    return loaded.ready(width=NARROW)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def every_question():
    return (part.ravel() for part in np.meshgrid(np.arange(12), np.arange(6)))


def test_a_grade_made_ready_is_narrow(loaded, ready):
    assert (ready.width, loaded.ready().width) == (NARROW, FULL)
    assert loaded.ready().narrowing is None
    np.testing.assert_array_equal(ready.narrowing.matrix, Narrowing.of(loaded.reference.entities, NARROW).matrix)
    np.testing.assert_array_equal(ready.entity_vectors, ready.narrowing.narrowed(loaded.reference.entities))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_files_and_manifest(bundles, precision):
    folder = bundles[precision]
    assert folder.name == f"tiny-pmd-grade-2-{precision}-width-8"
    assert manifest(folder)["width"] == NARROW
    values = np.load(folder / "entities.npy")
    assert (values.shape, values.dtype) == ((12, NARROW), np.float32 if precision == "fp32" else np.int8)
    for tower in ("query", "entity"):
        pooling = json.loads((folder / tower / "1_Pooling" / "config.json").read_text())
        assert pooling["word_embedding_dimension"] == NARROW
    assert set(manifest(folder)["parity"]["gate"]) == {"mrr_kept"}


def test_a_narrow_bundle_scores_as_numpy_does(bundles, loaded, ready):
    scorer = Scorer.load(bundles["fp32"], threads=1, verify=True)
    heads, relations = every_question()
    inputs = loaded.grade.tokenizer(loaded.builder.queries(heads, relations)).padded(0)
    queries = ready.narrowing.narrowed(in_torch(loaded.grade.model.query, inputs)[0])
    np.testing.assert_allclose(
        scorer.score_queries(heads, relations), queries @ ready.entity_vectors.T, rtol=0, atol=1e-5
    )


def test_a_narrow_int8_bundle_is_close_to_the_float_one(bundles):
    scores = [Scorer.load(bundles[name], threads=1).score_queries(*every_question()) for name in ("fp32", "int8")]
    assert np.corrcoef(scores[0].ravel(), scores[1].ravel())[0, 1] > 0.99


def test_the_full_width_answers_as_torch_does(loaded, tmp_path):
    facts = write_bundle(loaded.ready(width=FULL), Making("fp32", width=FULL), tmp_path / "turned")
    scorer, reference = Scorer.load(tmp_path / "turned", threads=1), loaded.reference
    found = scorer.score_queries(*queries_of(scorer.known, VALID))
    np.testing.assert_allclose(found, reference.queries @ reference.entities.T, rtol=0, atol=2e-6)
    assert np.abs(scorer.bundle.tables.vectors.vectors() - reference.entities).max() > 0.1, "they are turned"
    assert facts["parity"]["max_cosine_gap"] < 1e-5
    assert facts["parity"]["mrr_kept"] == 1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_manifests_cosine_gap_is_of_lifted_vectors(bundles, loaded, ready, precision):
    """Measured again from the files, against torch's vectors of the full width."""
    scorer = Scorer.load(bundles[precision], threads=1)
    encode = TowerEncoder.load(scorer.bundle, QUERY, threads=1)
    again = TowerEncoder.load(scorer.bundle, ENTITY, threads=1)
    pairs = (
        (loaded.reference.queries, encode(loaded.texts[QUERY])),
        (loaded.reference.entities, again(loaded.texts[ENTITY])),
        (loaded.reference.entities, scorer.bundle.tables.vectors.vectors()),
    )
    want = max(cosine_gap(theirs, ready.narrowing.lifted(ours)) for theirs, ours in pairs)
    found = manifest(bundles[precision])["parity"]["max_cosine_gap"]
    assert found == pytest.approx(want, abs=1e-6)
    assert 1e-3 < found < 1, "8 of 32 numbers lose something, and not all"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_entities_are_added_to_a_narrow_bundle(bundles, precision, tmp_path):
    scorer = Scorer.load(bundles[precision], threads=1)
    scorer.add_entity("text", name="red", description="small new")
    scorer.add_entity("vector", name="blue", vector=np.arange(1.0, NARROW + 1))
    scorer.add_entity("twin", name="red", description="small new")
    answers = {answer.entity: answer.score for answer in scorer.top_tails("e1", "isa", k=15)}
    assert {"text", "vector"} <= set(answers)
    assert answers["text"] == answers["twin"]
    with pytest.raises(QueryError, match="vector must be 8 finite numbers"):
        scorer.add_entity("wide", name="wide", vector=np.ones(FULL))
    saved = Scorer.load(scorer.save(tmp_path / "saved"), threads=1)
    assert saved.bundle.tables.vectors.width == NARROW
    assert saved.top_tails("e1", "isa", k=15) == scorer.top_tails("e1", "isa", k=15)


@pytest.mark.parametrize("extra", [(), ("--trim-vocabulary",)])
def test_a_width_beyond_the_encoders_is_refused(run, tmp_path, monkeypatch, extra):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["--grade", "2", "--run", str(run), "--width", "33", "--quiet", *extra])
    assert result.exit_code == 2
    assert result.stderr == "error: --width 33 does not fit an encoder of width 32; use 1 to 32\n"
    assert list(tmp_path.iterdir()) == []


def test_narrow_and_trimmed_together(loaded, tmp_path):
    making = Making("fp32", trim_vocabulary=True, width=12, vectors="int8")
    assert making.suffix == "fp32-trimmed-width-12-int8-vectors"
    facts = write_bundle(loaded.ready(trim_vocabulary=True, width=12), making, tmp_path / making.suffix)
    assert facts["width"] == 12
    assert facts["vocabulary"]["pieces"] < facts["vocabulary"]["of"]
    assert facts["parity"]["mrr_kept"] > 0.97
    assert np.load(tmp_path / making.suffix / "entities.npy").shape == (12, 12)
    assert len(Scorer.load(tmp_path / making.suffix, threads=1).top_tails("e1", "isa", k=3)) == 3
