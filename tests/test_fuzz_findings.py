"""What fuzzing found, kept: each input once ended in a traceback, in two lines, or in a wrong answer."""

import io
import json
import logging
import os

import numpy as np
import pytest
from tiny_bundle import WIDTH

from pmd.benchmarks.compare import change_percent
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.pick import lines, pick
from pmd.benchmarks.reading import read_report
from pmd.datasets import layouts
from pmd.datasets.catalogue import load_catalogue
from pmd.datasets.cli import main as data_command
from pmd.datasets.convert import convert
from pmd.errors import DatasetError, RecipeError
from pmd.recipe import load_recipe, parse_setting
from pmd.serving.archive import npy_array
from pmd.serving.asked import MOST_THREADS
from pmd.serving.command import emit
from pmd.serving.encoder import open_session
from pmd.serving.errors import BundleError, PmdError, QueryError
from pmd.serving.predictions import PredictionsError, read_ranks, write_predictions
from pmd.serving.server.app import create_app
from tests.bench_rows import report

NO_TEXT = os.fsdecode(b"b\xff")


class Wordless:
    """A value whose own words fail."""

    def __len__(self):
        raise TypeError("no length")

    def __repr__(self):
        raise ValueError("no words")


def refused(error, run):
    """The message of an error, which must be one line of reasonable length."""
    with pytest.raises(error) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000, message
    return message


ODD = (None, 3, b"aspirin", {"aspirin"}, {"aspirin": 1}, list, np.array("aspirin"), Wordless(), (k for k in "ab"))


class TestQuestions:
    @pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
    def test_keys_of_a_wrong_kind(self, tiny_scorer, odd):
        for ask in (
            lambda: tiny_scorer.top_tails(odd, "treats"),
            lambda: tiny_scorer.top_tails("aspirin", odd),
            lambda: tiny_scorer.top_heads([odd], "pain"),
            lambda: tiny_scorer.top_tails([odd], "treats", head_is_text=True),
            lambda: tiny_scorer.score(odd),
            lambda: tiny_scorer.score([odd]),
            lambda: tiny_scorer.score([("aspirin", "treats", odd)]),
            lambda: tiny_scorer.explain("aspirin", "treats", odd),
            lambda: tiny_scorer.find_entity(odd),
            lambda: tiny_scorer.remove_entity(odd),
            lambda: tiny_scorer.add_entity(odd, name="x"),
            lambda: tiny_scorer.update_entity("aspirin", name=odd if odd is not None else 3),
        ):
            refused(PmdError, ask)

    @pytest.mark.parametrize("k", [True, np.bool_(True), 2.0, "3", None, 0, -(10**30), [1], Wordless()], ids=type)
    def test_k_is_a_whole_number_from_1(self, tiny_scorer, k):
        refused(QueryError, lambda: tiny_scorer.top_tails("aspirin", "treats", k=k))
        refused(QueryError, lambda: tiny_scorer.explain("aspirin", "treats", "pain", triples=k))

    @pytest.mark.parametrize("k", [12, 13, 2**63, 10**30, np.int64(100), np.uint8(200)])
    def test_any_larger_k_gives_all_that_are_left(self, tiny_scorer, k):
        assert len(tiny_scorer.top_tails("aspirin", "treats", k=k)) == 9

    @pytest.mark.parametrize("flag", [1, 0, None, "no", np.array([True, False])], ids=str)
    def test_a_flag_is_true_or_false(self, tiny_scorer, flag):
        for name in ("head_is_text", "exclude_known", "reranked"):
            refused(QueryError, lambda: tiny_scorer.top_tails("aspirin", "treats", **{name: flag}))  # noqa: B023
        refused(QueryError, lambda: tiny_scorer.explain("aspirin", "treats", "pain", is_text=flag))
        refused(QueryError, lambda: tiny_scorer.evaluate(reranked=flag))

    def test_sides_splits_and_indices_of_a_wrong_kind(self, tiny_scorer):
        both = np.array(["tail", "head"])
        refused(QueryError, lambda: tiny_scorer.explain("aspirin", "treats", "pain", asks=both))
        refused(QueryError, lambda: tiny_scorer.evaluate(both))
        refused(QueryError, lambda: tiny_scorer.score_queries([[0], [1, 2]], [0, 0]))

    @pytest.mark.parametrize(
        "among", ["aspirin", b"aspirin", bytearray(b"a"), 3, np.array("aspirin"), ["aspirin", 3]], ids=str
    )
    def test_among_of_a_wrong_kind(self, tiny_scorer, among):
        refused(QueryError, lambda: tiny_scorer.top_tails("aspirin", "treats", among=among))

    def test_a_predicate_that_raises_is_the_callers_own(self, tiny_scorer):
        with pytest.raises(ZeroDivisionError):
            tiny_scorer.top_tails("aspirin", "treats", among=lambda key: 1 / 0)

    def test_a_vector_of_numbers_that_no_float_holds(self, tiny_scorer):
        refused(QueryError, lambda: tiny_scorer.add_entity("new", name="new", vector=[10**400] * WIDTH))
        refused(QueryError, lambda: tiny_scorer.update_entity("aspirin", vector=[10**400] * WIDTH))

    @pytest.mark.parametrize("threads", [0, -1, "2", 1.0, True, MOST_THREADS + 1, 100_000, 2**40])
    def test_threads_that_would_stop_the_process(self, tiny_folder, threads):
        refused(QueryError, lambda: open_session(tiny_folder / "query/onnx/model.onnx", threads=threads))


TURTLE = "<urn:a> <urn:r> <urn:b> .\n"


class TestDatasets:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("train.ttl", "@"),
            ("train.ttl", '<urn:a> <http://www.w3.org/2000/01/rdf-schema#label> "\\ud83d" .\n' + TURTLE),
            ("train.ttl", "<urn:pmd:entity: > <urn:r> <urn:b> .\n"),
            ("train.ttl", "<urn:pmd:entity:a> <urn:r> <urn:b> .\n<urn:pmd:entity:%61> <urn:r> <urn:b> .\n"),
            ("train.nt", '<urn:a> <http://www.w3.org/2000/01/rdf-schema#label> "\\ud83d" .\n' + TURTLE),
        ],
    )
    def test_rdf_that_no_graph_can_hold(self, tmp_path, name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        refused(DatasetError, lambda: layouts.read(tmp_path).graph())

    def test_a_link_that_breaks_over_lines_is_told_in_one(self, tmp_path):
        (tmp_path / "texts.ttl").write_text("<urn:a> <urn:r> <urn:b\nc> .\n", encoding="utf-8")
        (tmp_path / "train.ttl").write_text(TURTLE, encoding="utf-8")
        refused(DatasetError, lambda: layouts.read(tmp_path))

    def test_ids_of_any_length_are_cut_in_messages(self, tmp_path):
        (tmp_path / "entities.tsv").write_text("a\n", encoding="utf-8")
        (tmp_path / "train.tsv").write_text(f"a\tr\t{'b' * 9000}\n", encoding="utf-8")
        refused(DatasetError, lambda: layouts.read(tmp_path))
        (tmp_path / "entities.tsv").write_text(f"{'b' * 9000}\n" * 2, encoding="utf-8")
        refused(DatasetError, lambda: layouts.read(tmp_path))

    def test_parquet_that_is_not_utf8(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        column = pa.array(["aa", "bb"])
        pq.write_table(pa.table({"head": column, "relation": column, "tail": column}), tmp_path / "train.parquet")
        whole = (tmp_path / "train.parquet").read_bytes()
        for old in (b"bb", b"relation"):
            (tmp_path / "train.parquet").write_bytes(whole.replace(old, b"\xbe" + old[1:]))
            refused(DatasetError, lambda: layouts.read(tmp_path).graph())

    def test_bare_columns_say_that_they_would_lose_a_relation(self, tmp_path):
        (tmp_path / "given").mkdir()
        (tmp_path / "given/train.tsv").write_text("a\tr\tb\na\ts\t\x85\n", encoding="utf-8")
        graph = layouts.read(tmp_path / "given", skip_unknown=True).graph()
        assert "relation" in refused(DatasetError, lambda: convert(graph, tmp_path / "out", "bare"))


class TestDocuments:
    @pytest.mark.parametrize(
        "value", ["!!int x", "!!float x", "!!bool x", "!!timestamp x", "[" * 400, "2026-13-99", "*a"]
    )
    def test_yaml_whose_tag_does_not_fit(self, tmp_path, value):
        refused(RecipeError, lambda: parse_setting(f"lr={value}"))
        (tmp_path / "recipe.yaml").write_text(f"lr: {value}\n", encoding="utf-8")
        refused(RecipeError, lambda: load_recipe(str(tmp_path / "recipe.yaml"), {}))
        refused(DatasetError, lambda: load_catalogue(tmp_path / "recipe.yaml"))

    def test_recipe_keys_and_templates_in_one_line(self):
        refused(RecipeError, lambda: load_recipe("umls", {"layer_maps": {"\n": [1]}}))
        refused(RecipeError, lambda: load_recipe("umls", {"templates": {"entity": "{" + "x" * 5000 + "}"}}))

    @pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400])
    def test_a_report_with_numbers_of_any_length(self, tmp_path, number):
        text = json.dumps(report()).replace('"hits@1": ', f'"hits@1": {number}, "x": ', 1)
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
        refused(BenchError, lambda: read_report(tmp_path))

    def test_a_report_whose_metrics_have_no_mrr(self, tmp_path):
        made = json.loads(json.dumps(report()))
        del made["results"][0]["metrics"]["mrr"]
        (tmp_path / "report.json").write_text(json.dumps(made), encoding="utf-8")
        name = made["results"][0]["bundle"]
        assert any(f"{name}: MRR is unknown" in line for line in lines(pick(read_report(tmp_path), {})))

    @pytest.mark.parametrize(
        "change",
        [
            {"above": -1},
            {"above": 10**30},
            {"above": True},
            {"above": 0.5},
            {"level": 12},
            {"known_level": 12},
            {"known": 10**6},
        ],
        ids=str,
    )
    def test_counts_that_no_ranking_gives(self, tiny_scorer, tmp_path, change):
        file = tmp_path / "x.jsonl"
        write_predictions(tiny_scorer, "test", 1, file)
        about, first, *others = file.read_text(encoding="utf-8").splitlines()
        first = json.dumps(json.loads(first) | change)
        file.write_text("\n".join([about, first, *others]) + "\n", encoding="utf-8")
        assert ":2: " in refused(PredictionsError, lambda: read_ranks(file))

    def test_a_file_of_no_predictions(self, tiny_scorer, tmp_path):
        file = tmp_path / "x.jsonl"
        about = write_predictions(tiny_scorer, "test", 1, file)
        file.write_text(json.dumps(about | {"lines": 0}) + "\n", encoding="utf-8")
        refused(PredictionsError, lambda: read_ranks(file))


def test_the_last_line_is_one_line_to_every_reader(capsys):
    emit({"name": "a\u2028b\u2029c\x85d"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"name": "a\u2028b\u2029c\x85d"}


def test_a_numpy_file_of_a_version_that_there_is_not():
    file = io.BytesIO()
    np.save(file, np.arange(3))
    data = bytearray(file.getvalue())
    data[7] = 1
    refused(BundleError, lambda: npy_array(np.frombuffer(bytes(data), np.uint8), "x.npy"))


class TestNamesThatAreNoText:
    """Linux lets a file be called by bytes that are not UTF-8."""

    def test_a_model_in_such_a_folder_opens(self, tiny_folder, tmp_path):
        folder = tmp_path / NO_TEXT
        folder.mkdir()
        (folder / "model.onnx").write_bytes((tiny_folder / "query/onnx/model.onnx").read_bytes())
        assert open_session(folder / "model.onnx", threads=1).get_outputs()

    @pytest.mark.parametrize("layout", ["csv", "parquet"])
    def test_a_dataset_is_written_there_and_told_of(self, tmp_path, monkeypatch, capfd, layout):
        pytest.importorskip("pyarrow")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "graph.tsv").write_text(
            "".join(f"e{n}\tr\te{(n + 1) % 9}\n" for n in range(30)), encoding="utf-8"
        )
        with pytest.raises(SystemExit) as end:
            data_command(["convert", "graph.tsv", NO_TEXT, "--to", layout, "--quiet"])
        assert end.value.code == 0
        assert json.loads(capfd.readouterr().out.splitlines()[-1])["path"] == NO_TEXT


def test_a_query_string_that_is_not_utf8_is_not_a_failure(tiny_scorer, caplog):
    """At an address that is not there: its URL could not be shown. Without a client, which would escape it."""
    import asyncio

    app, sent = create_app({"tiny": tiny_scorer}), []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "//", "query_string": b"\xa9", "headers": [], "root_path": ""}
    with caplog.at_level(logging.ERROR):
        asyncio.run(app(scope | {"scheme": "http", "server": ("x", 1)}, receive, send))
    assert sent[0]["status"] == 404 and not caplog.records


@pytest.mark.parametrize("relations", [{"is_a": " "}, {"\x85": "is a"}, {"is_a": "\ud800"}, {"\ud800": "is a"}])
def test_relations_of_json_without_a_name(relations, tmp_path):
    entities = [{"entity_id": "a", "entity": "a", "entity_desc": ""}]
    (tmp_path / "entities.json").write_text(json.dumps(entities))
    (tmp_path / "relations.json").write_text(json.dumps(relations))
    (tmp_path / "train.txt.json").write_text(
        json.dumps([{"head_id": "a", "head": "a", "relation": "is a", "tail_id": "a", "tail": "a"}])
    )
    refused(DatasetError, lambda: layouts.read(tmp_path).graph())


def test_recipe_keys_that_are_no_text(tmp_path):
    (tmp_path / "x.yaml").write_text("dataset: umls\n1: 2\n")
    refused(RecipeError, lambda: load_recipe(str(tmp_path / "x.yaml"), {}))


def test_a_change_that_no_float_holds_is_unknown():
    assert change_percent(5e-324, 1e300) is None
    assert change_percent(2.0, 3.0) == 50.0
