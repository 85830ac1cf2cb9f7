"""Every layout: recognised, written and read back the same whatever its texts hold, and its mistakes named."""

import gzip
import itertools
import json

import pytest
from hypothesis import given, settings

from pmd.datasets import layouts, load_graph
from pmd.datasets.convert import convert, first_difference, flattened
from pmd.datasets.layouts import LAYOUTS, WRITERS, recognise
from pmd.errors import DatasetError
from pmd.serving.storage import StorageError
from tests.graphs import as_triples, assert_same, graph_of, graphs, id_triples
from tests.tiny_encoder import tiny_graph, write_graph

NEEDS = {"csv": "pyarrow", "parquet": "pyarrow", "nt": "rdflib", "turtle": "rdflib"}
RECOGNISED_AS = {"tsv.gz": "tsv", "tsv.xz": "tsv", "csv": "columns", "parquet": "columns"}
RECOGNISED_AS |= {"nt": "rdf", "turtle": "rdf"}
TEXTS = [name for name in WRITERS if name != "bare"]
ANY_TEXT = ("simkgc", "csv", "parquet", "nt", "turtle")
"""Layouts that hold tabs and line breaks in texts, too."""


def written(graph, folder, layout):
    if layout in NEEDS:
        pytest.importorskip(NEEDS[layout])
    folder.mkdir(parents=True)
    WRITERS[layout](graph, folder)
    return folder


@pytest.mark.parametrize("layout", TEXTS)
def test_written_and_read_back(tmp_path, layout):
    folder = written(tiny_graph(), tmp_path / "tiny", layout)
    assert recognise(folder).name == RECOGNISED_AS.get(layout, layout)
    graph = load_graph(str(folder))
    assert_same(graph, tiny_graph())
    assert graph.name == "tiny"


@pytest.mark.parametrize("layout", TEXTS)
def test_any_text_without_tab_or_line_break_reads_back(tmp_path_factory, layout):
    root, number = tmp_path_factory.mktemp(layout), itertools.count()

    @settings(max_examples=25)
    @given(graphs())
    def holds(graph):
        if layout == "simkgc" and len(set(graph.relation_texts)) < len(graph.relation_texts):
            return
        assert_same(load_graph(str(written(graph, root / str(next(number)), layout))), graph)

    holds()


@pytest.mark.parametrize("layout", ANY_TEXT)
def test_other_layouts_hold_any_text_at_all(tmp_path_factory, layout):
    root, number = tmp_path_factory.mktemp(layout), itertools.count()

    @settings(max_examples=25)
    @given(graphs(without=""))
    def holds(graph):
        if layout == "simkgc" and len(set(graph.relation_texts)) < len(graph.relation_texts):
            return
        assert_same(load_graph(str(written(graph, root / str(next(number)), layout))), graph)

    holds()


@settings(max_examples=25)
@given(graphs())
def test_bare_columns_keep_every_triple(tmp_path_factory, graph):
    folder = tmp_path_factory.mktemp("bare") / "bare"
    convert(graph, folder, "bare", drop_texts=True)
    back = load_graph(str(folder))
    for split in ("train", "valid", "test"):
        assert id_triples(back, split) == id_triples(graph, split)


@pytest.mark.parametrize("layout", ["tsv", "kgbert", "bare"])
@pytest.mark.parametrize("control", ["\t", "\n", "\r"])
def test_what_a_layout_cannot_hold_is_refused(tmp_path, layout, control):
    graph = graph_of([(0, 0, 1)], descriptions=("", "", f"a{control}b", "", "", ""))
    with pytest.raises(DatasetError, match=r"entity 'e2' has a .*--flatten"):
        convert(graph, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()
    convert(graph, tmp_path / "out", "tsv", flatten=True)
    assert load_graph(str(tmp_path / "out")).descriptions[2] == "a b"


def test_bare_columns_lose_texts_only_when_told_to(tmp_path):
    with pytest.raises(DatasetError, match="--drop-texts"):
        convert(tiny_graph(), tmp_path / "out", "bare")
    lone = graph_of([(0, 0, 1)], names=tuple(f"e{n}" for n in range(6)), descriptions=("",) * 6, relations=1)
    with pytest.raises(DatasetError, match=r"4 entities without a triple|beyond the ids"):
        convert(lone, tmp_path / "out", "bare")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        convert(tiny_graph(), tmp_path / "out", "tsv")
    with pytest.raises(DatasetError, match="unknown layout 'xml'"):
        convert(tiny_graph(), tmp_path / "other", "xml")


def test_a_difference_is_told():
    graph = tiny_graph()
    assert first_difference(graph, flattened(graph)) == ""
    changed = graph_of([(0, 0, 1)], entities=12, relations=3, relation_ids=graph.relation_ids)
    assert "has other texts" in first_difference(graph, changed)
    assert "train triples" in first_difference(graph, changed, texts=False)


def test_gz_and_xz_bytes_repeat(tmp_path):
    for layout in ("tsv.gz", "tsv.xz"):
        one, two = (written(tiny_graph(), tmp_path / layout / name, layout) for name in "ab")
        for path in one.iterdir():
            assert path.read_bytes() == (two / path.name).read_bytes()


def test_a_path_of_no_layout_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.doc").write_text("nothing")
    for path, held in ((tmp_path, "it holds notes.doc"), (tmp_path / "notes.doc", "a file of another kind")):
        with pytest.raises(DatasetError, match=held) as caught:
            load_graph(str(path))
        for layout in LAYOUTS:
            assert layout.looked_for in str(caught.value)
        assert "\n" not in str(caught.value)


class TestBare:
    def test_one_file_is_split_with_a_seed(self, tmp_path):
        path = tmp_path / "graph.tsv"
        path.write_text("".join(f"n_{a}\tnext_to\tn_{b}\n" for a in range(20) for b in range(20) if a != b))
        graph = load_graph(str(path))
        assert (graph.name, graph.num_entities) == ("graph", 20)
        assert [len(graph.split(s)) for s in ("train", "valid", "test")] == [304, 38, 38]
        assert graph.names[0] == "n 0" and graph.relation_texts == ("next to",)
        assert_same(graph, load_graph(str(path)))

    @pytest.mark.parametrize("name", ["graph.txt", "graph.tsv.gz"])
    def test_other_names(self, tmp_path, name):
        data = b"a\tr\tb\nb\tr\tc\nc\tr\ta\na\tr\tc\n" * 2
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        graph = load_graph(str(tmp_path / name))
        assert (graph.name, graph.entity_ids) == ("graph", ("a", "b", "c"))

    def test_a_folder_keeps_its_splits(self, tmp_path):
        (tmp_path / "train.txt").write_text("b\tr\ta\n")
        (tmp_path / "dev.txt").write_text("a\tr\tc\n")
        graph = load_graph(str(tmp_path))
        assert graph.entity_ids == ("a", "b", "c")
        assert (graph.train.tolist(), graph.valid.tolist(), len(graph.test)) == ([[1, 0, 0]], [[0, 0, 2]], 0)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", r"graph.tsv:1: the file has no triples"),
            ("a\tr\tb\na b c\n", r"graph.tsv:2: 1 column, expected head"),
            ("a\tr\tb\na\t\tb\n", r"graph.tsv:2: an id is empty"),
            ("".join(f"a\tr\tb{n}\n" for n in range(9)), r"none of the 9 triples of graph can be held out"),
        ],
    )
    def test_mistakes(self, tmp_path, content, message):
        (tmp_path / "graph.tsv").write_text(content)
        with pytest.raises(DatasetError, match=message):
            load_graph(str(tmp_path / "graph.tsv"))


class TestKgBert:
    def test_wn18rr_has_name_and_gloss_in_one_text(self, tmp_path):
        (tmp_path / "entity2text.txt").write_text("1\tland reform, a redistribution, by law\n2\tday, 24 hours\n")
        (tmp_path / "train.tsv").write_text("1\t_hypernym\t2\n")
        graph = load_graph(str(tmp_path))
        assert (graph.names, graph.descriptions[0]) == (("land reform", "day"), "a redistribution, by law")
        assert graph.relation_texts == ("hypernym",)
        (tmp_path / "entity2text.txt").write_text("1\tWashington, D.C.\n2\tday\n")
        assert load_graph(str(tmp_path)).names == ("Washington, D.C.", "day")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("entity2text.txt", "1\ta\tb\n", r"entity2text.txt:1: 3 columns"),
            ("entity2text.txt", "1\ta\n1\tb\n", r"entity2text.txt:2: id '1' stands here a second time"),
            ("entity2text.txt", "", r"entity2text.txt:1: the file is empty"),
            ("train.tsv", "1\tr\t9\n", r"train.tsv:1: '9' is not in entity2text.txt"),
            ("train.tsv", "", r"train.tsv:1: the file has no triples"),
            ("relation2text.txt", "q\tq\n", r"train.tsv:1: 'r' is not in relation2text.txt"),
        ],
    )
    def test_mistakes(self, tmp_path, name, content, message):
        (tmp_path / "entity2text.txt").write_text("1\ta\n2\tb\n")
        (tmp_path / "train.tsv").write_text("1\tr\t2\n")
        (tmp_path / name).write_text(content)
        with pytest.raises(DatasetError, match=message):
            load_graph(str(tmp_path))


class TestSimKgc:
    @pytest.fixture
    def folder(self, tmp_path):
        """As SimKGC's preprocess.py writes it: indented, relations by their text."""
        entities = [
            {"entity_id": "01", "entity": "land_reform_NN_1", "entity_desc": "a redistribution"},
            {"entity_id": "02", "entity": "day_NN_2", "entity_desc": None},
        ]
        triple = {"head_id": "01", "head": "land_reform_NN_1", "relation": "also see"}
        triple |= {"tail_id": "02", "tail": "day_NN_2"}
        content = {"entities": entities, "relations": {"_also_see": "also see"}, "train.txt": [triple] * 2}
        for name, value in content.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value, indent=4))
        return tmp_path

    def test_the_original_layout(self, folder):
        graph = load_graph(str(folder))
        assert (graph.entity_ids, graph.names) == (("01", "02"), ("land reform", "day"))
        assert graph.descriptions == ("a redistribution", "")
        assert (graph.relation_ids, graph.relation_texts) == (("_also_see",), ("also see",))
        assert graph.train.tolist() == [[0, 0, 1]] * 2

    def test_a_relation_that_is_not_listed_is_its_own_text(self, folder):
        (folder / "relations.json").unlink()
        assert load_graph(str(folder)).relation_ids == ("also see",)

    @pytest.mark.parametrize(
        ("name", "old", "new", "message"),
        [
            ("train.txt", '"02"', '"03"', r"train.txt.json:2: '03' is not in entities.json"),
            ("train.txt", '"head_id": "01"', '"head_id": 1', r"train.txt.json:2: record 1 has no text 'head_id'"),
            ("train.txt", "},", "}", r"train.txt.json:9: not JSON \(Expecting ',' delimiter"),
            ("entities", '"02"', '"01"', r"entities.json:7: id '01' stands here a second time, with other texts"),
            ("entities", '"02"', '""', r"entities.json:7: the id is empty"),
            ("entities", "redistribution", "\\ud800", r"entities.json:2: entity_desc has half a surrogate"),
            ("relations", '"_also_see": "also see"', '"a": "x", "b": "x"', r"'b' has the same text as 'a', 'x'"),
            ("relations", '"also see"', "7", r"relations.json:1: expected one object"),
        ],
    )
    def test_mistakes(self, folder, name, old, new, message):
        path = folder / f"{name}.json"
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(DatasetError, match=message) as caught:
            load_graph(str(folder))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", ["", "[]", "{}", "[1]", "[" * 100_000])
    @pytest.mark.parametrize("name", ["entities", "train.txt"])
    def test_other_content(self, folder, name, content):
        (folder / f"{name}.json").write_text(content)
        with pytest.raises(DatasetError, match=rf"{name}.json:\d+: "):
            load_graph(str(folder))

    def test_what_it_cannot_hold(self, tmp_path):
        same = graph_of([(0, 0, 1)], relation_texts=("part of", "part of"))
        with pytest.raises(DatasetError, match="relation 'r1' has the same text as 'r0'"):
            convert(same, tmp_path / "out", "simkgc")
        tagged = graph_of([(0, 0, 1)], names=tuple(f"word_NN_{n}" for n in range(6)))
        with pytest.raises(DatasetError, match="sense tags"):
            convert(tagged, tmp_path / "out", "simkgc")
        assert not (tmp_path / "out").exists()


class TestColumns:
    @pytest.fixture(autouse=True)
    def _pyarrow(self):
        pytest.importorskip("pyarrow")

    @pytest.mark.parametrize(
        "content",
        [
            "a,likes,b\nb,likes,c\na,likes,c\nc,likes,a\n",
            "Subject,predicate,OBJECT\na,likes,b\nb,likes,c\na,likes,c\nc,likes,a\n",
            "weight,tail,relation,head\r\n1,b,likes,a\r\n1,c,likes,b\r\n2,c,likes,a\r\n3,a,likes,c\r\n",
            '\ufeff"head","relation","tail"\n"a","likes","b"\n\nb,likes,c\na,likes,c\nc,likes,a',
        ],
    )
    def test_csv_with_and_without_headings(self, tmp_path, content):
        (tmp_path / "graph.csv").write_bytes(content.encode())
        graph = load_graph(str(tmp_path / "graph.csv"))
        assert (graph.entity_ids, graph.relation_ids) == (("a", "b", "c"), ("likes",))
        found = [triple for split in ("train", "valid", "test") for triple in id_triples(graph, split)]
        assert sorted(found) == [("a", "likes", "b"), ("a", "likes", "c"), ("b", "likes", "c"), ("c", "likes", "a")]

    def test_a_table_of_entities_beside(self, tmp_path):
        (tmp_path / "graph.csv").write_text("a,r,b\nb,r,c\nc,r,a\na,r,c\n")
        (tmp_path / "entities.csv").write_text('id,description,name\na,"one, or more",A\nb,,B\nc,"two\nlines",\n')
        graph = load_graph(str(tmp_path / "graph.csv"))
        assert graph.names == ("A", "B", "c")
        assert graph.descriptions == ("one, or more", "", "two\nlines")

    def test_parquet_of_numbers_and_categories(self, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"source": pa.array([1, 2, 3, 1]), "edge": pa.array(["r"] * 4).dictionary_encode()}
        pq.write_table(pa.table({**columns, "target": pa.array([2, 3, 1, 3])}), tmp_path / "g.parquet")
        assert load_graph(str(tmp_path / "g.parquet")).entity_ids == ("1", "2", "3")

    def test_a_cell_of_10_mb(self, tmp_path):
        (tmp_path / "train.csv").write_text("a,r,b\n")
        (tmp_path / "entities.csv").write_text(f"id,name,description\na,A,{'word ' * 2_000_000}\nb,B,\n")
        assert len(load_graph(str(tmp_path)).descriptions[0]) == 10_000_000

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train.csv", "", r"train.csv:1: the file is empty"),
            ("train.csv", "head,relation,tail\n", r"train.csv:1: the file has no triples"),
            ("train.csv", "a,r,b\na,r\n", r"train.csv:2: 2 columns, expected 3"),
            ("train.csv", 'a,r,"b\nc"\n\na,r,b,c\n', r"train.csv:4: 4 columns, expected 3"),
            ("train.csv", "a,r,b,1\n", r"train.csv:1: 4 columns \(a, r, b, 1\), expected 3 or headings"),
            ("train.csv", "head,relation,tail\na,r,b\na,r,\n", r"train.csv:3: tail is empty"),
            ("train.csv", "a,r,b\na,r,nobody\n", r"train.csv:2: 'nobody' is not in entities"),
            ("train.csv", b"a,r,b\na,r,\xff\n", r"train.csv:2: not UTF-8"),
            ("entities.csv", "id\na\na\n", r"entities.csv:3: id 'a' stands here a second time"),
            ("entities.csv", "id,name\n", r"entities.csv:1: the table has no rows"),
            ("train.parquet", "PAR1 no", r"train.parquet: not a Parquet file, or cut short"),
        ],
    )
    def test_mistakes(self, tmp_path, name, content, message):
        (tmp_path / "train.csv").write_text("a,r,b\n")
        (tmp_path / "entities.csv").write_text("id,name\na,A\nb,B\n")
        if name.endswith(".parquet"):
            (tmp_path / "train.csv").unlink()
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DatasetError, match=message) as caught:
            load_graph(str(tmp_path))
        assert "\n" not in str(caught.value)

    def test_rows_of_parquet_are_named(self, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"h": ["a", None], "r": ["r", "r"], "t": ["b", "b"]}), tmp_path / "g.parquet")
        with pytest.raises(DatasetError, match=r"g.parquet: row 2: head is empty"):
            load_graph(str(tmp_path / "g.parquet"))

    def test_without_pyarrow_the_command_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        (tmp_path / "graph.csv").write_text("a,r,b\n")
        with pytest.raises(Exception, match=r"pyarrow not installed; run: pip install 'pmd-kgc\[data\]'"):
            load_graph(str(tmp_path / "graph.csv"))


TURTLE = """
@prefix ex: <http://example.org/> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
@prefix schema: <http://schema.org/> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
ex:knows a owl:ObjectProperty ; rdfs:label "is acquainted with"@en .
ex:Ada rdfs:label "Ada (fr)"@fr, "Ada Lovelace"@en ; rdfs:comment "a comment" ;
    schema:description "the first programmer" ;
    ex:knows ex:Charles_Babbage ; ex:born 1815 .
ex:Charles_Babbage ex:knows ex:Ada ; ex:knows [ rdfs:label "nobody" ] .
<relative> ex:knows ex:Ada . ex:Ada ex:knows <relative> .
"""


class TestRdf:
    @pytest.fixture(autouse=True)
    def _rdflib(self):
        pytest.importorskip("rdflib")

    def test_turtle(self, tmp_path, caplog):
        (tmp_path / "train.ttl").write_text(TURTLE)
        graph = load_graph(str(tmp_path))
        names = dict(zip(graph.entity_ids, graph.names, strict=True))
        assert names == {
            "http://example.org/Ada": "Ada Lovelace",
            "http://example.org/Charles_Babbage": "Charles Babbage",
            "relative": "relative",
        }
        assert graph.descriptions == ("the first programmer", "", "")
        assert graph.relation_texts == ("is acquainted with",)
        assert len(graph.train) == 4
        assert "1 statements with blank nodes left out" in caplog.text

    def test_one_file_is_split(self, tmp_path):
        (tmp_path / "graph.nt").write_text(
            "# a comment\n" + "".join(f"<urn:{a}> <urn:r> <urn:{b}> .\r\n" for a in range(9) for b in range(9))
        )
        graph = load_graph(str(tmp_path / "graph.nt"))
        assert (graph.num_entities, graph.relation_texts, len(graph.train)) == (9, ("r",), 65)

    def test_files_beside_train_hold_texts_alone(self, tmp_path):
        (tmp_path / "train.nt").write_text("<urn:a> <urn:r> <urn:b> .\n")
        (tmp_path / "more.nt").write_text("<urn:a> <urn:r> <urn:c> .\n")
        with pytest.raises(DatasetError, match=r"more.nt: links 'urn:a' to 'urn:c'"):
            load_graph(str(tmp_path))
        (tmp_path / "train.nt").rename(tmp_path / "part.nt")
        assert load_graph_of_all(tmp_path).num_entities == 3

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train.nt", "<urn:a> <urn:r> <urn:b> .\n<urn:a> <urn:r>\n", r"train.nt:2: not N-Triples"),
            ("train.nt", "", r"no statement links"),
            ("train.nt", b'<urn:a> <urn:r> "\xff" .\n', r"train.nt:1: not UTF-8"),
            ("train.ttl", "@prefix ex: <urn:> .\nex:a ex:r ex:b .\nex:a ex:r\n", r"train.ttl:3: not Turtle"),
            ("train.ttl", "<urn:a> <urn:r> <urn:b> .\n<urn:a> nonsense .\n<urn:b> .\n", r"train.ttl:2: not"),
            ("train.ttl", "<urn:a> <urn:r> 'text' .", r"no statement links"),
        ],
    )
    def test_mistakes(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DatasetError, match=message) as caught:
            load_graph(str(tmp_path))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("suffix", [".nt", ".ttl"])
    def test_a_description_of_10_mb(self, tmp_path, suffix):
        (tmp_path / f"train{suffix}").write_text(
            f'<urn:a> <urn:r> <urn:b> .\n<urn:a> <https://schema.org/description> "{"word " * 2_000_000}" .\n'
        )
        assert len(load_graph(str(tmp_path)).descriptions[0]) == 10_000_000


def load_graph_of_all(folder):
    """The graph of a folder that names no splits, before it is split."""
    return layouts.read(folder).graph()


def test_a_contract_folder_is_not_taken_for_bare_columns(tmp_path):
    folder = write_graph(tmp_path / "tiny")
    (folder / "entities.tsv").unlink()
    with pytest.raises(DatasetError, match=r"has no entities.tsv"):
        load_graph(str(folder))


def test_a_name_and_a_local_copy(tmp_path, monkeypatch):
    write_graph(tmp_path / "umls")
    monkeypatch.setenv("PMD_CACHE", str(tmp_path / "cache"))
    assert load_graph("umls").num_entities == 135
    monkeypatch.setenv("PMD_DATA", str(tmp_path))
    assert load_graph("umls").num_entities == 12
    for name in ("", "nowhere", "../umls/../nowhere"):
        with pytest.raises(DatasetError, match="no dataset folder"):
            load_graph(name)


def test_triples_of_one_kind_may_repeat_and_loop(tmp_path):
    graph = graph_of([(0, 0, 0), (0, 0, 0), (1, 1, 0)], entities=2, test=[(1, 0, 1)])
    for layout in TEXTS:
        assert as_triples(load_graph(str(written(graph, tmp_path / layout, layout))).train).tolist() == [
            [0, 0, 0],
            [0, 0, 0],
            [1, 1, 0],
        ]
