"""Latency against the number of entities: the synthetic tables, the line, and what a row says of them."""

from __future__ import annotations

import json
import sys

import jsonschema
import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from pmd.benchmarks import case, growth, machine, schema
from pmd.benchmarks.bench import repeat_command, ticks_of
from pmd.benchmarks.case import Plan
from pmd.serving.bundle import Bundle
from pmd.serving.errors import BundleError

SMALLER = """
import sys
from pmd.benchmarks import child, growth
growth.SIZES = (100, 1000, 5000)
sys.exit(child.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("quantised", [False, True])
def test_synthetic_vectors_are_unit_ones_laid_out_as_a_bundles_are(quantised, monkeypatch):
    monkeypatch.setattr(growth, "COLUMNS_AT_ONCE", 70)  # several parts and a rest
    table = growth.synthetic(200, 24, quantised=quantised)
    assert (len(table), table.width) == (200, 24)
    assert table.values.dtype == (np.int8 if quantised else np.float32)
    assert np.linalg.norm(table.vectors(), axis=1) == pytest.approx(np.ones(200), abs=1e-5)
    assert table.columns.base is table.values.base or np.shares_memory(table.columns, table.values)  # no copy
    assert len(np.unique(table.vectors(), axis=0)) == 200
    assert abs(table.vectors().mean()) < 0.02  # around nothing


def test_the_line_through_points_on_a_line_is_that_line():
    points = [{"entities": size, "query_ms": 0.5 + 3 * size / 100_000} for size in growth.SIZES]
    assert growth.fit(points) == pytest.approx({"ms": 0.5, "ms_per_100k": 3.0, "worst_percent": 0.0}, abs=1e-6)


def test_the_line_says_how_far_off_it_is_and_minds_small_tables():
    points = [{"entities": size, "query_ms": 1 + 2 * size / 100_000} for size in growth.SIZES]
    points[-1]["query_ms"] *= 1.5
    found = growth.fit(points)
    assert found["ms"] == pytest.approx(1, rel=0.1)
    assert 5 < found["worst_percent"] < 50
    assert growth.fit(points[:1]) is None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_growth_of_a_bundle_is_in_its_row_and_by_the_schema(tmp_path, precision):
    bundle = write_tiny_bundle(tmp_path / "tiny", precision=precision)
    plan = Plan(questions=10, lap_limit_s=0, batches=1, cold_starts=1, growth=True)
    plan = Plan(**{**vars(plan), "child": (sys.executable, "-c", SMALLER)})
    ticks: list[str] = []
    row = case.measure(bundle, plan, ticks.append)
    assert row["error"] is None
    assert ticks[-1] == "tiny: growth"
    found = row["growth"]
    assert [point["entities"] for point in found["points"]] == [100, 1000, 5000]
    assert all(point["query_ms"] > 0 for point in found["points"])
    assert (found["synthetic"], found["left_out"]) == (True, [])
    assert found["dtype"] == ("int8" if precision == "int8" else "float32")
    whole = schema.report_schema()
    jsonschema.validate(found, {**whole["$defs"]["growth"], "$defs": whole["$defs"]})
    assert set(found) == set(whole["$defs"]["growth"]["properties"])
    json.dumps(found, allow_nan=False)


def test_tables_that_memory_is_too_small_for_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "SIZES", (100, 1000))
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny"))
    tables = {size: size * bundle.tables.vectors.width * 4 for size in (100, 1000)}
    found = growth.growth(bundle, split="test", threads=1, free_bytes=2 * tables[1000] - 1)
    assert ([point["entities"] for point in found["points"]], found["left_out"]) == ([100], [1000])
    assert found["fit"] is None
    assert machine.free_bytes() > 1_000_000


def test_an_empty_split_is_told(tmp_path, monkeypatch):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny"))
    monkeypatch.setattr(type(bundle.tables.known), "triples", lambda *_: np.zeros((0, 3), np.int64))
    with pytest.raises(BundleError, match="no valid triples"):
        growth.growth(bundle, split="valid", threads=1, free_bytes=1 << 30)


def test_the_plan_that_has_it_says_so():
    plan = Plan(growth=True)
    assert ticks_of([], plan) == 2
    assert ticks_of(["a", "b"], plan) == ticks_of(["a", "b"], Plan()) + 2
    assert "--growth" in repeat_command([], plan, quick=False).split()
    assert "--growth" not in repeat_command([], Plan(), quick=False)
