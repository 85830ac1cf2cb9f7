"""Reading a dataset folder: plain and compressed, and every mistake with its file and line."""

import gzip
import hashlib
import lzma
from pathlib import Path

import numpy as np
import pytest

from pmd.dataset import load_graph, shipped_datasets
from pmd.errors import DatasetError
from tests.tiny_encoder import tiny_graph, write_graph

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def assert_same(one, other):
    for field in ("entity_ids", "names", "descriptions", "relation_ids", "relation_texts"):
        assert getattr(one, field) == getattr(other, field)
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(one.split(split), other.split(split))


@pytest.fixture
def folder(tmp_path):
    return write_graph(tmp_path / "tiny")


def test_read_equals_written(folder):
    assert_same(load_graph(str(folder)), tiny_graph())
    assert load_graph(str(folder)).name == "tiny"


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files_read_the_same(folder, suffix, compress):
    for path in list(folder.iterdir()):
        path.with_name(path.name + suffix).write_bytes(compress(path.read_bytes()))
        path.unlink()
    assert_same(load_graph(str(folder)), tiny_graph())


def test_crlf_and_bom_change_nothing(folder):
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert_same(load_graph(str(folder)), tiny_graph())


def test_relations_and_splits_may_be_absent(folder):
    for name in ("relations", "valid", "test"):
        (folder / f"{name}.tsv").unlink()
    graph = load_graph(str(folder))
    assert set(graph.relation_ids) == set(tiny_graph().relation_ids)
    assert graph.relation_texts[graph.relation_ids.index("part_of")] == "part of"
    assert graph.valid.shape == graph.test.shape == (0, 3)


def test_the_shipped_umls_graph():
    graph = load_graph("umls")
    assert (graph.num_entities, graph.num_relations) == (135, 46)
    assert [len(graph.split(s)) for s in ("train", "valid", "test")] == [5216, 652, 661]
    assert not any(graph.descriptions)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data folder beside the checkout")
def test_the_shipped_umls_graph_is_the_published_one():
    for name in ("entities", "relations", "train", "valid", "test"):
        ours, theirs = shipped_datasets()["umls"] / f"{name}.tsv", SHARED / "umls-names" / f"{name}.tsv"
        assert hashlib.sha256(ours.read_bytes()).digest() == hashlib.sha256(theirs.read_bytes()).digest()


def _append(name, data):
    def change(folder):
        path = folder / f"{name}.tsv"
        path.write_bytes(path.read_bytes() + data)

    return change


def _truncated(folder):
    path = folder / "train.tsv"
    (folder / "train.tsv.xz").write_bytes(lzma.compress(path.read_bytes())[:-20])
    path.unlink()


MISTAKES = {
    "two columns": (_append("train", b"e1\tisa\n"), r"train.tsv:41: 2 columns"),
    "unknown entity": (_append("train", b"e1\tisa\tnobody\n"), r"train.tsv:41: 'nobody' is not in entities.tsv"),
    "unknown relation": (_append("test", b"e1\tlikes\te2\n"), r"test.tsv:7: 'likes' is not in relations.tsv"),
    "tab in text": (_append("entities", b"e99\tname\tdescription\textra\n"), r"entities.tsv:13: 4 columns"),
    "id twice": (_append("entities", b"e1\tother\n"), r"entities.tsv:13: id 'e1' stands here a second time"),
    "bad UTF-8": (_append("entities", b"e99\t\xff\xfe\n"), r"entities.tsv:13: not UTF-8"),
    "no entities": (lambda f: (f / "entities.tsv").unlink(), r"has no entities.tsv"),
    "empty entities": (lambda f: (f / "entities.tsv").write_text(""), r"entities.tsv is empty"),
    "empty train": (lambda f: (f / "train.tsv").write_text("\n"), r"train.tsv has no triples"),
    "cut short": (_truncated, r"train.tsv.xz is cut short"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_file_and_line(folder, mistake):
    change, message = MISTAKES[mistake]
    change(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        load_graph(str(folder))
    assert "\n" not in str(caught.value)
