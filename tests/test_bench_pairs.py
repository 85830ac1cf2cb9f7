"""Tests by pairs between the bundles of one report."""

from __future__ import annotations

import bench_rows
import numpy as np
import pytest
from tiny_bundle import TEST_TRIPLES, write_tiny_bundle

from pmd.benchmarks.bench import bench
from pmd.benchmarks.case import Plan
from pmd.benchmarks.pairs import paired, read_ranks, write_ranks
from pmd.serving.analysis import paired_test
from pmd.serving.ranking import Ranks

FLOATS = (("failed", "it died"), ("whole", None))
TRIPLES = np.arange(60).reshape(20, 3)


def ranks_of(seed: int, worse: int = 0) -> Ranks:
    """40 ranks of the same kind for a seed, all moved down by `worse`."""
    counts = np.zeros((5, 40), np.int64)
    counts[0] = np.random.default_rng(seed).integers(0, 9, 40) + worse
    return Ranks(counts, 100)


@pytest.fixture
def kept(tmp_path):
    """Writes the ranks of rows and gives the files."""

    def write(*ranks: Ranks | None, triples: np.ndarray = TRIPLES):
        files = [tmp_path / f"{number}.npz" for number in range(len(ranks))]
        for file, one in zip(files, ranks, strict=True):
            if one is not None:
                write_ranks(file, one, triples)
        return files

    return write


def test_ranks_come_back_as_they_were(kept):
    (file,) = kept(ranks_of(0))
    found = read_ranks(file)
    assert found is not None
    assert np.array_equal(found.ranks.rank(), ranks_of(0).rank())
    assert found.ranks.num_entities == 100
    assert np.array_equal(found.triples, TRIPLES)
    assert read_ranks(file.with_name("absent.npz")) is None


def test_each_is_tested_against_its_float_sibling_and_the_float_teacher(kept):
    rows = [
        bench_rows.row("grade-3", "int8"),
        bench_rows.row("grade-4", "fp32"),
        bench_rows.row("grade-3", "fp32"),
        bench_rows.row("teacher", "int8"),
        bench_rows.row("teacher", "fp32"),
        bench_rows.row("grade-3", "int8", method="baseline"),
    ]
    ranks = [ranks_of(0, worse=1), ranks_of(1), ranks_of(0), ranks_of(2, worse=2), ranks_of(2), ranks_of(3)]
    found = paired(rows, kept(*ranks))
    siblings = [row["against_fp32"] and row["against_fp32"]["bundle"] for row in found]
    teachers = [row["against_teacher"] and row["against_teacher"]["bundle"] for row in found]
    teacher = "umls-pmd-teacher-fp32"
    assert siblings == ["umls-pmd-grade-3-fp32", None, None, teacher, None, None]
    assert teachers == [teacher, teacher, teacher, teacher, None, teacher]
    expected = paired_test(ranks[0], ranks[2])
    assert found[0]["against_fp32"] == {"bundle": "umls-pmd-grade-3-fp32", **expected}
    assert found[0]["against_fp32"]["difference"] < 0 < found[0]["against_fp32"]["p_value"] < 0.01
    assert found[0]["bundle"] == rows[0]["bundle"]


def test_nothing_is_tested_against_what_failed_or_ranked_something_else(kept):
    rows = [bench_rows.row("grade-3", "int8"), bench_rows.row("grade-3", "fp32", error="it died")]
    assert [row["against_fp32"] for row in paired(rows, kept(ranks_of(0), ranks_of(1)))] == [None, None]
    rows[1]["error"] = None
    files = kept(ranks_of(0), ranks_of(1))
    write_ranks(files[1], ranks_of(1), TRIPLES + 1)
    assert paired(rows, files)[0]["against_fp32"] is None
    files[1].unlink()
    assert paired(rows, files)[0]["against_fp32"] is None


def test_another_seed_is_no_sibling(kept):
    rows = [bench_rows.row("grade-3", "int8"), bench_rows.row("grade-3", "fp32", seed=1)]
    assert paired(rows, kept(ranks_of(0), ranks_of(0)))[0]["against_fp32"] is None


def test_a_bench_tests_the_ranks_that_its_children_found(tmp_path):
    bundles = [
        write_tiny_bundle(tmp_path / "tiny-int8", precision="int8"),
        write_tiny_bundle(tmp_path / "tiny-fp32"),
    ]
    plan = Plan(questions=10, lap_limit_s=0, batches=1, cold_starts=1)
    rows = {row["bundle"]: row for row in bench(bundles, plan)["results"]}
    whole, rounded = rows["tiny-fp32"], rows["tiny-int8"]
    assert whole["error"] is rounded["error"] is whole["against_fp32"] is rounded["against_teacher"] is None
    found = rounded["against_fp32"]
    assert (found["bundle"], found["triples"]) == ("tiny-fp32", len(TEST_TRIPLES))
    assert found["difference"] == pytest.approx(rounded["metrics"]["mrr"] - whole["metrics"]["mrr"])


def test_a_sibling_that_failed_makes_way_for_one_that_did_not(kept):
    failed, whole = (bench_rows.row("grade-3", "fp32", bundle=name, error=why) for name, why in FLOATS)
    rows = [failed, bench_rows.row("grade-3", "int8"), whole]
    found = paired(rows, kept(ranks_of(1), ranks_of(0), ranks_of(2)))
    assert found[1]["against_fp32"]["bundle"] == "whole"
    assert found[0]["against_fp32"] is None  # it failed itself
