"""The large table of the serving bench: it is a bundle's, searched exactly, and a wrong answer would be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pmd.benchmarks.edge import million, near
from pmd.benchmarks.errors import MeasureError
from pmd.serving.bundle import SCALES, VECTORS


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(million, "CHUNK", 1000)  # several pieces, the last one short
        million.write_table({"folder": str(folder), "rows": 3500, "width": 64})
    return folder


def test_the_table_is_a_bundles(table, tmp_path, monkeypatch):
    values, scales = np.load(table / VECTORS), np.load(table / SCALES)
    assert (values.dtype, values.shape, values.flags.f_contiguous) == (np.int8, (3500, 64), True)
    lengths = np.linalg.norm(values * scales[:, None], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=0.01)
    assert len(np.unique(values, axis=0)) == 3500
    monkeypatch.setattr(million, "CHUNK", 1000)
    million.write_table({"folder": str(tmp_path), "rows": 3500, "width": 64})
    assert all((tmp_path / name).read_bytes() == (table / name).read_bytes() for name in (VECTORS, SCALES))


def test_search_in_the_table(table):
    found = million.measure_search({"folder": str(table), "queries": 12, "checked": 8})
    assert found["exact"]["same"] == found["exact"]["as_good"] == found["exact"]["queries"] == 8
    assert found["ratio"] == pytest.approx(found["search_gb_s"] / found["read_gb_s"])
    assert found["ratio_mapped"] == pytest.approx(found["search_gb_s"] / found["mapped_gb_s"])
    assert found["ratio_of_medians"] == pytest.approx(found["median_gb_s"]["search"] / found["median_gb_s"]["read"])
    assert found["search_gb_s"] == pytest.approx(3500 * 64 / found["query_ms"]["best"] / 1e6)
    assert 0 < found["open_seconds"] < found["load_seconds"]


def test_a_wrong_answer_is_seen(table):
    opened = million.open_table(table)
    queries = million.queries_of(3, 64)
    exact = million.exact_scores(opened, queries)
    np.testing.assert_allclose(exact, queries @ opened.vectors().T, atol=1e-5)
    order = np.argsort(-exact, axis=1)
    best = [(row[:10], scores[row[:10]]) for row, scores in zip(order, exact, strict=True)]
    assert million.exactness(opened, queries, best)["same"] == 3
    best[1] = (np.append(order[1][:9], order[1][10]), best[1][1])  # the eleventh in place of the tenth
    found = million.exactness(opened, queries, best)
    assert (found["same"], found["as_good"]) == (2, 2)
    gap = np.sort(exact[1])[-10] - np.sort(exact[1])[-11]
    assert found["max_score_gap"] == pytest.approx(gap)
    assert found["max_score_error"] == pytest.approx(gap)  # it was given with the tenth's score
    with pytest.raises(MeasureError, match="had 9 answers"):
        million.exactness(opened, queries, [(indices[:9], scores[:9]) for indices, scores in best])


def test_the_approximate_index(table):
    pytest.importorskip("usearch")
    found = near.measure_ann({"folder": str(table), "rows": 2000, "queries": 20, "threads": 1})
    assert (found["rows"], found["whole_table"], found["build_threads"]) == (2000, False, 1)
    recalls = [row["recall_at_10"] for row in found["searches"]]
    assert recalls[0] < recalls[-1]
    assert recalls[-1] >= 0.9
    assert near.measure_ann({"folder": str(table), "rows": 10**6, "queries": 2, "threads": 1})["whole_table"]
