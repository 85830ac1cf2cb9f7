"""The published datasets beside the checkout: counts, leaks, and every layout there and back (slow)."""

import sys
from pathlib import Path

import pytest

from pmd.datasets import load_graph
from pmd.datasets.check import check
from pmd.datasets.convert import convert
from pmd.datasets.layouts import WRITERS
from tests.graphs import assert_same, id_triples

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data folder beside the checkout"),
]
NEEDS = {"csv": "pyarrow", "parquet": "pyarrow", "nt": "rdflib", "turtle": "rdflib"}
KNOWN = {
    # entities, relations, train, valid, test; % reversed, same relation, same pair; unseen valid, test, triples
    "wn18rr": (40943, 11, 86835, 3034, 3134, 34.9, 34.7, 0.3, 198, 209, 210),
    "wn18rr-small": (3874, 11, 7173, 570, 573, 42.9, 41.7, 0.5, 0, 0, 0),
    "umls": (135, 46, 5216, 652, 661, 40.8, 14.7, 52.2, 0, 0, 0),
    "umls-names": (135, 46, 5216, 652, 661, 40.8, 14.7, 52.2, 0, 0, 0),
    "fb15k237": (14541, 237, 272115, 17535, 20466, 0, 0, 0, 8, 29, 28),
    "nell995-h100": (22411, 43, 50314, 3763, 3746, 21.2, 13.2, 11.3, 692, 755, 738),
    "kinship": (104, 25, 8544, 1068, 1074, 81.5, 23.6, 0, 0, 0, 0),
    "nations": (14, 55, 1592, 199, 201, 100, 52.7, 100, 0, 0, 0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_counts_and_leaks_are_those_of_the_readme(name):
    report = check(SHARED / name, "not counted here")
    counts, leakage, unseen = report["counts"], report["leakage"]["test"], report["unseen"]
    assert tuple(counts.values()) == KNOWN[name][:5]
    shares = (leakage["reversed"], leakage["reversed_same_relation"], leakage["same_pair"])
    for share, expected in zip(shares, KNOWN[name][5:8], strict=True):
        assert 100 * share == pytest.approx(expected, abs=0.0501)
    assert (unseen["valid"]["entities"], unseen["test"]["entities"]) == KNOWN[name][8:10]
    assert unseen["test"]["triples"] == KNOWN[name][10]
    assert report["passed"] and not report["damaged_files"]
    assert report["repeated"] == {"train": 0, "valid": 0, "test": 0}


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("name", ["wn18rr", "fb15k237"])
def test_every_layout_there_and_back(tmp_path, name, layout):
    if layout in NEEDS:
        pytest.importorskip(NEEDS[layout])
    graph = load_graph(str(SHARED / name))
    convert(graph, tmp_path / "there", layout, drop_texts=layout == "bare")
    back = load_graph(str(tmp_path / "there"))
    if layout != "bare":  # which has no place for texts
        assert_same(back, graph)
        convert(back, tmp_path / "back", "tsv")
        assert_same(load_graph(str(tmp_path / "back")), graph)
        return
    for split in ("train", "valid", "test"):
        assert id_triples(back, split) == id_triples(graph, split)


@pytest.mark.parametrize("name", ["wn18rr", "fb15k237"])
def test_files_large_and_small_read_the_same(name, monkeypatch):
    """The bulk pass through pyarrow and the pass by line give the same graph of real data."""
    pytest.importorskip("pyarrow")
    graphs = []
    for bulk_bytes in (0, sys.maxsize):
        monkeypatch.setattr("pmd.datasets.triples.BULK_BYTES", bulk_bytes)
        graphs.append(load_graph(str(SHARED / name)))
    assert_same(*graphs)
