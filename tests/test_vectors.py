"""Scores against the table of vectors: right, and the same bits whatever stands around a query."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmd.serving.ranking import RankingError
from pmd.serving.vectors import VectorTable, on_grid, top_k

E, D = 37, 384


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(params=["float32", "int8"])
def table(request) -> VectorTable:
    vectors = unit(np.random.default_rng(1), E, D)
    return VectorTable.quantised(vectors) if request.param == "int8" else VectorTable(vectors)


@pytest.fixture
def queries() -> np.ndarray:
    return unit(np.random.default_rng(2), 9, D)


def test_scores_are_dot_products_with_the_stored_vectors(table, queries):
    expected = queries.astype(np.float64) @ table.vectors().astype(np.float64).T
    scores = table.scores(queries)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 3, 36, 37, 1000])
def test_chunked_scores_are_the_same_bits(table, queries, chunk):
    np.testing.assert_array_equal(table.scores(queries, chunk=chunk), table.scores(queries))


def test_a_query_scores_the_same_bits_alone_and_in_any_batch(table, queries):
    batch = table.scores(queries)
    for index in range(len(queries)):
        np.testing.assert_array_equal(table.scores(queries[index : index + 1])[0], batch[index])
    order = np.random.default_rng(3).permutation(len(queries))
    np.testing.assert_array_equal(table.scores(queries[order]), batch[order])


def test_the_order_of_summation_cannot_matter(table, queries):
    """Permuting the dimensions permutes every sum; a rounding anywhere in them would show."""
    order = np.random.default_rng(4).permutation(D)
    shuffled = VectorTable(np.ascontiguousarray(table.values[:, order]), table.scales)
    np.testing.assert_array_equal(shuffled.scores(queries[:, order]), table.scores(queries))


@pytest.mark.parametrize("width", [1, 3, 768, 1024])
def test_exactness_holds_at_other_widths(width):
    rng = np.random.default_rng(5)
    vectors, queries, order = unit(rng, E, width), unit(rng, 4, width), rng.permutation(width)
    for table in (VectorTable(vectors), VectorTable.quantised(vectors)):
        shuffled = VectorTable(np.ascontiguousarray(table.values[:, order]), table.scales)
        np.testing.assert_array_equal(shuffled.scores(queries[:, order]), table.scores(queries, chunk=5))


@pytest.mark.parametrize("width", [16, 384, 1024])
@pytest.mark.parametrize("count", [1, 2, 8, 9, 16, 40])
def test_no_product_is_large_enough_for_the_threads_of_the_blas(monkeypatch, count, width):
    """A BLAS that shares out a product ignores the threads the user asked for; see the module's docstring."""
    sizes = []
    matmul = np.matmul

    def recorded(left, right):
        rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
        sizes.append((rows, rows * inner * columns))
        return matmul(left, right)

    rng = np.random.default_rng(10)
    table, queries = VectorTable(unit(rng, 1500, width)), unit(rng, count, width)
    monkeypatch.setattr(np, "matmul", recorded)
    table.scores(queries)
    assert len(sizes) == 2  # 1024 rows and the rest
    assert all(size < 9216 if rows == 1 else size <= 262144 for rows, size in sizes)


def test_equal_vectors_tie_wherever_they_stand(queries):
    vectors = unit(np.random.default_rng(6), E, D)
    vectors[[5, 20, 36]] = vectors[0]
    for table in (VectorTable(vectors), VectorTable.quantised(vectors)):
        scores = table.scores(queries, chunk=7)
        np.testing.assert_array_equal(scores[:, [5, 20, 36]], scores[:, [0, 0, 0]])


def test_pair_scores_are_the_same_bits_as_the_full_row(table, queries):
    entities = np.array([0, 36, 5, 5, 1, 2, 3, 4, 0])
    expected = table.scores(queries)[np.arange(9), entities]
    np.testing.assert_array_equal(table.pair_scores(queries, entities), expected)
    np.testing.assert_array_equal(table.pair_scores(queries, entities, chunk=2), expected)
    assert table.pair_scores(queries[:0], entities[:0]).shape == (0,)


def test_int8_is_near_the_float_vectors_and_keeps_zero_rows():
    vectors = unit(np.random.default_rng(7), E, D)
    vectors[3] = 0
    table = VectorTable.quantised(vectors)
    assert table.values.dtype == np.int8
    assert table.scales is not None
    assert (np.abs(table.vectors() - vectors) <= table.scales[:, None] / 2 + 1e-7).all()
    assert not table.vectors()[3].any()


def test_appended_and_taken_rows_leave_the_others_alone(table, queries):
    new = unit(np.random.default_rng(8), D)
    more = table.appended(new)
    assert (len(more), len(table)) == (E + 1, E)
    np.testing.assert_array_equal(more.scores(queries)[:, :E], table.scores(queries))
    np.testing.assert_allclose(more.scores(new[None])[0, E], 1, atol=0.01)
    np.testing.assert_array_equal(more.take(np.arange(E)).scores(queries), table.scores(queries))
    kept = np.delete(np.arange(E), 4)
    np.testing.assert_array_equal(table.take(kept).scores(queries), table.scores(queries)[:, kept])
    np.testing.assert_array_equal(
        table.take(kept[:9]).joined(table.take(kept[9:])).scores(queries), table.scores(queries)[:, kept]
    )


def test_the_order_in_memory_changes_no_score(table, queries):
    for order in "CF":
        other = VectorTable(np.array(table.values, order=order), table.scales)
        np.testing.assert_array_equal(other.scores(queries), table.scores(queries))
    np.testing.assert_array_equal(table.columns, table.values.T)


def test_scores_of_some_are_those_of_all(table, queries):
    entities = np.array([0, 36, 5, 1, 2])
    for query, all_scores in zip(queries, table.scores(queries), strict=True):
        np.testing.assert_array_equal(table.some_scores(on_grid(query), entities), all_scores[entities])
    assert table.some_scores(on_grid(queries[0]), entities[:0]).shape == (0,)


def test_no_vector_is_longer_than_the_table_says(table):
    lengths = np.linalg.norm(table.vectors().astype(np.float64), axis=1)
    assert (lengths <= table.longest).all()
    assert table.longest < 1.1
    assert table.longer().tolist() == []
    scales = None if table.scales is None else table.scales * np.where(np.arange(E) == 3, 2, 1).astype(np.float32)
    values = np.array(table.values)
    if table.scales is None:
        values[3] *= 2
    assert VectorTable(values, scales).longer(chunk=2).tolist() == [3]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_without_a_warning(queries, bad):
    vectors = unit(np.random.default_rng(9), E, D)
    damaged = vectors.copy()
    damaged[7, 7] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RankingError, match="table of entity vectors is damaged"):
            VectorTable(damaged).scores(queries)
        with pytest.raises(RankingError, match="table of entity vectors is damaged"):
            VectorTable(damaged).pair_scores(queries[:1], np.array([7]))
        with pytest.raises(RankingError, match="query tower gave a vector"):
            VectorTable(vectors).scores(queries * np.float32(bad))


@given(
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.sampled_from([-1, 0, 0.5, 1, -np.inf])),
    st.integers(1, 35),
)
def test_top_k_is_a_full_sort_with_ties_to_the_lower_index(scores, k):
    expected = sorted((i for i in range(len(scores)) if scores[i] > -np.inf), key=lambda i: (-scores[i], i))[:k]
    assert top_k(scores, k).tolist() == expected
