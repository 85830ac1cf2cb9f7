"""The contract's TSV folder: plain and compressed, in bulk and line by line, and every mistake with its line."""

import gzip
import hashlib
import lzma
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pmd.datasets import bulk, layouts, load_graph, shipped_datasets, triples
from pmd.datasets.triples import Vocabulary, read_by_line, read_triples
from pmd.errors import DatasetError
from tests.graphs import assert_same
from tests.tiny_encoder import tiny_graph, write_graph

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
VOCABULARY = Vocabulary(["a", "b", "c"], ["r"])


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
    assert graph.relation_ids == tuple(sorted(tiny_graph().relation_ids))
    assert graph.relation_texts[graph.relation_ids.index("part_of")] == "part of"
    assert graph.valid.shape == graph.test.shape == (0, 3)


def test_names_and_descriptions_may_be_absent(folder):
    lines = [f"{key}\n" if key != "e3" else "e3\tnamed\n" for key in tiny_graph().entity_ids]
    (folder / "entities.tsv").write_text("".join(lines))
    graph = load_graph(str(folder))
    assert graph.names[:4] == ("e0", "e1", "e2", "named")
    assert not any(graph.descriptions)


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


@pytest.mark.parametrize("large", [False, True])
def test_files_large_and_small_read_the_same(folder, monkeypatch, large):
    """Large files go through pyarrow where it is installed."""
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(triples, "BULK_BYTES", 0 if large else sys.maxsize)
    assert_same(load_graph(str(folder)), tiny_graph())
    (folder / "entities.tsv").unlink()
    (folder / "relations.tsv").unlink()
    bare = load_graph(str(folder))
    assert bare.entity_ids == tuple(sorted(tiny_graph().entity_ids))
    assert [len(bare.split(s)) for s in ("train", "valid", "test")] == [40, 6, 6]


PIECES = ["a", "b", "c", "r", "x", "\t", "\t", "\n", "\r\n", "\r", " ", '"', "\ufeff", "\xff", "a\tr\tb\n", "é"]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=12).map(
    lambda parts: b"".join(b"\xff" if part == "\xff" else part.encode() for part in parts)
)


@given(CONTENT, st.booleans(), st.booleans())
@example(b"a\tr\tb\n\ra\tr\tc", True, False)
@example(b"\xef\xbb\xbf\xef\xbb\xbfa\tr\tb", False, False)
def test_both_passes_agree_on_any_bytes(tmp_path_factory, content, known, skip):
    """What the bulk pass accepts, the exact one reads the same; what it refuses, goes to the exact one."""
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("bytes") / "train.tsv"
    path.write_bytes(content)
    vocabulary = VOCABULARY if known else Vocabulary()
    quick = bulk.read_files({"train": path}, vocabulary)
    try:
        exact = read_by_line({"train": path}, vocabulary, skip_unknown=skip)
    except DatasetError as error:
        assert f"{path}:" in str(error)
        assert quick is None or (quick.skipped and not skip)
        return
    if quick is not None:
        assert (quick.entities, quick.relations, quick.skipped) == (exact.entities, exact.relations, exact.skipped)
        assert quick.splits["train"].tolist() == exact.splits["train"].tolist()


def test_unknown_ids_are_left_out_only_when_told_to(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("a\tr\tb\na\tr\tnobody\na\tlikes\tb\nb\tr\tc\n")
    found = read_triples({"train": path}, VOCABULARY, skip_unknown=True)
    assert (found.skipped, found.splits["train"].tolist()) == (2, [[0, 0, 1], [1, 0, 2]])
    with pytest.raises(DatasetError, match=r"train.tsv:2: 'nobody' is not in entities.tsv"):
        read_triples({"train": path}, VOCABULARY)


def _append(name, data):
    def change(folder):
        path = folder / f"{name}.tsv"
        path.write_bytes(path.read_bytes() + data)

    return change


def _truncated(folder):
    path = folder / "train.tsv"
    (folder / "train.tsv.xz").write_bytes(lzma.compress(path.read_bytes())[:-20])
    path.unlink()


def _not_compressed(folder):
    path = folder / "test.tsv"
    path.rename(folder / "test.tsv.gz")


MISTAKES = {
    "two columns": (_append("train", b"e1\tisa\n"), r"train.tsv:41: 2 columns"),
    "one column": (_append("train", b" \n"), r"train.tsv:41: 1 column,"),
    "four columns": (_append("valid", b"e1\tisa\te2\t0.9\n"), r"valid.tsv:7: 4 columns"),
    "unknown entity": (_append("train", b"e1\tisa\tnobody\n"), r"train.tsv:41: 'nobody' is not in entities.tsv"),
    "unknown relation": (_append("test", b"e1\tlikes\te2\n"), r"test.tsv:7: 'likes' is not in relations.tsv"),
    "empty id in a triple": (_append("test", b"e1\t\te2\n"), r"test.tsv:7: an id is empty"),
    "tab in text": (_append("entities", b"e99\tname\tdescription\textra\n"), r"entities.tsv:13: 4 columns"),
    "tab in relation text": (_append("relations", b"r\tone\ttwo\n"), r"relations.tsv:4: 3 columns"),
    "empty id": (_append("entities", b"\tname\n"), r"entities.tsv:13: the id is empty"),
    "other texts": (
        _append("entities", b"e1\tother\n"),
        r"entities.tsv:13: id 'e1' stands here a second time, with other texts \(first at .*entities.tsv:2\)",
    ),
    "same line twice": (_append("entities", b"e1\tbeta\n"), r"a second time, with the same texts"),
    "bad UTF-8": (_append("entities", b"e99\t\xff\xfe\n"), r"entities.tsv:13: not UTF-8"),
    "bad UTF-8 in a triple": (_append("train", b"e1\tisa\te2\xe9\n"), r"train.tsv:41: not UTF-8"),
    "no entities": (lambda f: (f / "entities.tsv").unlink(), r"has no entities.tsv"),
    "no train": (lambda f: (f / "train.tsv").unlink(), r"has no train.tsv"),
    "empty entities": (lambda f: (f / "entities.tsv").write_text(""), r"entities.tsv:1: the file is empty"),
    "empty train": (lambda f: (f / "train.tsv").write_text("\n"), r"train.tsv:1: the file has no triples"),
    "cut short": (_truncated, r"train.tsv.xz:\d+: the file is cut short"),
    "not compressed": (_not_compressed, r"test.tsv.gz:1: the file is cut short or not compressed"),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_file_and_line(folder, monkeypatch, mistake, large):
    monkeypatch.setattr(triples, "BULK_BYTES", 0 if large else sys.maxsize)
    change, message = MISTAKES[mistake]
    change(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        load_graph(str(folder))
    assert "\n" not in str(caught.value)


def test_a_description_of_10_mb_is_read_in_linear_time(folder):
    path = folder / "entities.tsv"
    path.write_text(path.read_text() + "e99\tlong\t" + "word " * 2_000_000 + "\n")
    assert len(load_graph(str(folder)).descriptions[-1]) == 10_000_000


def test_a_million_lines_cut_in_the_middle_name_the_line(tmp_path):
    folder = write_graph(tmp_path / "large")
    lines = b"".join(b"e%d\tisa\te%d\n" % (number % 12, (number + 1) % 12) for number in range(1_000_000))
    cut = lines[: len(lines) // 2].rsplit(b"\n", 1)[0] + b"\ne1\tis"
    (folder / "train.tsv").write_bytes(cut)
    last = len(cut.splitlines())
    with pytest.raises(DatasetError, match=rf"train.tsv:{last}: 2 columns"):
        load_graph(str(folder))
    (folder / "train.tsv").unlink()
    packed = gzip.compress(lines, 1)
    (folder / "train.tsv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DatasetError, match=r"train.tsv.gz:\d{6}: the file is cut short"):
        load_graph(str(folder))


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_a_decompression_bomb_is_refused(folder, monkeypatch, suffix, opener):
    """A few kilobytes that unpack to gigabytes; text never shrinks so far."""
    monkeypatch.setattr("pmd.datasets.lines.UNPACKED_FREELY_BYTES", 1 << 20)
    (folder / "train.tsv").unlink()
    with opener(folder / f"train.tsv{suffix}", "wb") as file:
        file.write(bytes(8 << 20))
    with pytest.raises(DatasetError, match="unpacks to more than 500 times its size"):
        load_graph(str(folder))


def test_a_csv_of_a_million_columns_is_refused(tmp_path):
    """Arrow would ask for memory for each of them, and end the process where there is none."""
    pytest.importorskip("pyarrow")
    (tmp_path / "graph.csv").write_text("a," * 200_000 + "b\n")
    with pytest.raises(DatasetError, match="columns, expected at most 1,000"):
        layouts.read(tmp_path / "graph.csv")


def test_a_text_that_repeats_for_ever_in_parquet_is_refused(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    monkeypatch.setattr("pmd.datasets.frames.UNPACKED_FREELY_BYTES", 1 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000), pa.array(["x" * 10_000]))
    pq.write_table(pa.table({name: column for name in ("head", "relation", "tail")}), tmp_path / "graph.parquet")
    with pytest.raises(DatasetError, match="its texts are more than 500 times its size"):
        layouts.read(tmp_path / "graph.parquet")
