"""`check`: every figure against a plain count by hand, and what stops it."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmd.datasets import figures, leaks
from pmd.datasets.check import FATAL_KINDS, check, verdict
from pmd.datasets.damage import damaged_files, unfinished_files
from pmd.datasets.encoders import EncoderTokenizer, find_tokenizer
from pmd.datasets.page import render
from pmd.datasets.report import lines
from pmd.errors import DatasetError, EncoderError
from tests.graphs import graph_of, id_triples
from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_graph

TRIPLE = st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 4))
TRIPLES = st.lists(TRIPLE, max_size=12)
NO_TOKENIZER = "no tokenizer here"


@given(TRIPLES, TRIPLES, TRIPLES)
def test_leaks_against_sets(train, valid, test):
    graph = graph_of(train, valid, test, entities=5)
    known, pairs = set(train), {(head, tail) for head, _, tail in train}
    for split, held in (("valid", valid), ("test", test)):
        found = leaks.leaks_of(graph, split)
        assert found.reversed.tolist() == [(t, h) in pairs for h, _, t in held]
        assert found.reversed_same.tolist() == [(t, r, h) in known for h, r, t in held]
        assert found.same_pair.tolist() == [(h, t) in pairs for h, _, t in held]
        seen = {end for h, _, t in train for end in (h, t)}
        assert leaks.unseen(graph, split) == {
            "entities": len({end for h, _, t in held for end in (h, t)} - seen),
            "triples": sum(h not in seen or t not in seen for h, _, t in held),
            "relations": len({r for _, r, _ in held} - {r for _, r, _ in train}),
        }
    assert leaks.repeats(graph) == {
        name: len(rows) - len(set(rows)) for name, rows in (("train", train), ("valid", valid), ("test", test))
    }
    assert leaks.overlaps(graph) == {
        "valid_in_train": sum(row in known for row in valid),
        "test_in_train": sum(row in known for row in test),
        "test_in_valid": sum(row in set(valid) for row in test),
    }


@given(TRIPLES)
def test_degrees_count_triples(train):
    found = figures.degrees(graph_of(train, entities=5))
    degree = [sum(entity in (h, t) for h, _, t in train) for entity in range(5)]
    assert (found["max"], found["isolated"]) == (max(degree), degree.count(0))
    assert sum(row["entities"] for row in found["histogram"]) == 5 - degree.count(0)
    for row in found["histogram"]:
        assert row["entities"] == sum(row["from"] <= count <= row["to"] for count in degree)


def test_texts():
    graph = graph_of(
        [(0, 0, 1)],
        relations=4,
        relation_texts=("part of", "Part  of", "isa", "PART OF"),
        names=("a", "a", "a", "b", "b", "c"),
        descriptions=("", "", "x", "one two three", "", ""),
    )
    assert figures.same_relation_texts(graph) == [{"text": "part of", "relations": ["r0", "r1", "r3"]}]
    assert figures.same_entity_texts(graph) == 2
    found = figures.descriptions(graph, limit=2)
    assert (found["missing"], found["over_limit"], found["words"]["max"]) == (4, 1, 3)


def test_token_lengths_are_those_of_the_wording(monkeypatch):
    graph = graph_of([(0, 0, 1)], descriptions=("", "one two", "word " * 60, *("",) * 3))
    found = figures.token_lengths(graph, tiny_tokenizer().to_str(), 50)
    # [CLS] entity 0 [SEP]; with a description, ":" and its words
    assert (found["min"], found["max"], found["over_limit"], found["sampled"]) == (4, 65, 1, False)
    assert sum(row["texts"] for row in found["histogram"]) == 6
    monkeypatch.setattr(figures, "TOKEN_TEXTS", 3)
    assert figures.token_lengths(graph, tiny_tokenizer().to_str(), 50)["texts"] == 3


@pytest.fixture
def folder(tmp_path):
    return write_graph(tmp_path / "tiny")


def line_of(graph, split, number=0):
    return "\t".join(id_triples(graph, split)[number]) + "\n"


def _append(name, content):
    def change(folder):
        with open(folder / f"{name}.tsv", "a") as file:
            file.write(content)

    return change


def _hashes(folder):
    facts = {"sha256": {"train.tsv": hashlib.sha256(b"another").hexdigest(), "gone.tsv": "00"}}
    (folder / "dataset.json").write_text(json.dumps(facts))


FATAL = {
    "test-in-train": (_append("test", line_of(tiny_graph(), "train")), "1 test triple stands in train as well"),
    "valid in train": (_append("valid", line_of(tiny_graph(), "train")), "1 valid triple stands in train as well"),
    "test-in-valid": (_append("test", line_of(tiny_graph(), "valid") * 2), "2 test triples stand in valid as well"),
    "repeated-test": (_append("test", line_of(tiny_graph(), "test")), "1 test triple stands there a second time"),
    "unknown-ids": (_append("test", "e1\tisa\tnobody\n"), r"1 triple names an unknown id, first .*test.tsv:7: 'no"),
    "damaged": (_hashes, "not the files that dataset.json tells of: train.tsv, gone.tsv"),
}


@pytest.mark.parametrize("kind", FATAL)
def test_what_makes_figures_meaningless_stops_unless_allowed(folder, kind):
    change, message = FATAL[kind]
    change(folder)
    report = check(folder, NO_TOKENIZER)
    kinds = {found["kind"] for found in report["problems"] if found["fatal"]}
    assert not report["passed"]
    assert kinds <= set(FATAL_KINDS)
    told = verdict(report)
    assert "\n" not in told and "--allow" in told
    assert any(re.search(message, found["message"]) for found in report["problems"])
    allowed = check(folder, NO_TOKENIZER, allow=kinds)
    assert allowed["passed"] and verdict(allowed) == ""
    assert any(found["allowed"] for found in allowed["problems"])


def test_a_sound_dataset_passes(folder):
    report = check(folder, EncoderTokenizer("tiny", tiny_tokenizer().to_str()))
    assert report["passed"] and report["schema"] == "pmd-data-check/1"
    assert report["counts"] == {"entities": 12, "relations": 3, "train": 40, "valid": 6, "test": 6}
    assert report["tokens"]["encoder"] == "tiny"
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert any("not be" in line or "cut at 50" in line for line in lines(report))


def test_a_single_file_is_split_first(tmp_path):
    path = tmp_path / "graph.tsv"
    path.write_text("".join(f"{a}\tr\t{b}\n" for a in range(9) for b in range(9)))
    report = check(path, NO_TOKENIZER)
    assert report["split_made"] == {"seed": 0, "valid": 0.1, "test": 0.1, "inductive": False}
    assert report["counts"]["test"] == 8
    assert "split with seed 0" in "\n".join(lines(report))


def test_empty_splits_give_unknown_figures(folder):
    for name in ("valid", "test"):
        (folder / f"{name}.tsv").unlink()
    report = check(folder, NO_TOKENIZER)
    assert report["leakage"]["test"] == {"reversed": None, "reversed_same_relation": None, "same_pair": None}
    assert {"no-valid", "no-test"} <= {found["kind"] for found in report["problems"]}
    assert report["tokens"] is None and report["tokens_missing"] == NO_TOKENIZER
    assert "<svg" in render(report) and list(lines(report))


def test_files_that_were_perhaps_cut(folder):
    path = folder / "train.tsv"
    path.write_bytes(path.read_bytes()[:-1])
    assert unfinished_files(folder) == ["train.tsv"]
    assert unfinished_files(path) == ["train.tsv"]
    report = check(folder, NO_TOKENIZER)
    assert report["passed"]
    assert any(found["kind"] == "no-line-end" for found in report["problems"])


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"sha256": 7}'])
def test_a_dataset_json_of_another_kind_is_no_damage(folder, content):
    (folder / "dataset.json").write_text(content)
    assert damaged_files(folder) == []


def test_hostile_texts_do_no_harm_to_the_page(folder):
    text = (folder / "relations.tsv").read_text()
    (folder / "relations.tsv").write_text(text.replace("part of", "<script>alert('$x$_{')</script> & more"))
    page = render(check(folder, NO_TOKENIZER))
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "://" not in page.replace("http://www.w3.org/", "")
    assert page == render(check(folder, NO_TOKENIZER))


def test_where_a_tokenizer_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_tokenizer(str(tmp_path)) == EncoderTokenizer(str(tmp_path), "{}")
    with pytest.raises(EncoderError, match=r"no tokenizer of '.*nowhere'"):
        find_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(EncoderError, match="no tokenizer of"):
        find_tokenizer("nobody/nothing")


def test_a_dataset_that_cannot_be_read_says_where(folder):
    Path(folder / "entities.tsv").write_text("e1\te1\te1\te1\n")
    with pytest.raises(DatasetError, match=r"entities.tsv:1: 4 columns"):
        check(folder, NO_TOKENIZER)
