"""The approximate index: exact scores in exact order, stated recall, and no index of another bundle."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_bundle import ENTITIES

from pmd.serving import MissingExtra, Scorer
from pmd.serving import near as near_module
from pmd.serving.bundle import Bundle
from pmd.serving.near import NearError, build_near
from pmd.serving.search import Fresh, Search, Wish
from pmd.serving.vectors import VectorTable

usearch = pytest.importorskip("usearch.index", reason="the index needs pmd-kgc[ann]")
E = len(ENTITIES)


@pytest.fixture(scope="module", params=["float32", "int8"])
def folder(request, tiny_folder, tiny_int8_folder):
    return tiny_folder if request.param == "float32" else tiny_int8_folder


@pytest.fixture(scope="module")
def index(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("near") / "tiny.near"
    build_near(Bundle.open(folder), path, threads=1)
    return path


def test_a_small_graph_is_found_whole(folder, index):
    facts = json.loads(index.with_name("tiny.near.json").read_text())
    assert (facts["recall"], facts["entities"]) == (1.0, E)
    exact, near = Scorer.load(folder, threads=1), Scorer.load(folder, threads=1, near=index, verify=True)
    assert near.search == f"usearch, 1.000 of the 10 best found on {facts['questions']} questions, exact scores"
    for scorer in (exact, near):
        scorer.add_entity("new", name="pain", vector=np.ones(16))
        scorer.remove_entity("fever")
        scorer.update_entity("heart", vector=np.arange(16) - 3.0)
    for options in ({}, {"reranked": True}, {"exclude_known": False}, {"among": ["heart", "new"]}):
        for head in exact.entity_ids:
            found = near.top_tails(head, "causes", **options)
            assert found == exact.top_tails(head, "causes", **options)


def test_what_is_found_is_scored_exactly():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 32))
    table = VectorTable.quantised(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    class Half:
        """An index that knows every second entity."""

        about = "half"

        def candidates(self, query, count):
            return np.sort(np.argsort(-table.scores(query[None])[0][::2])[:count] * 2)

    search = Search(table, threads=1, near=Half())
    query = table.vectors()[:1]
    scores = table.scores(query)[0]
    excluded = np.array([0, 10])
    even = [entity for entity in np.argsort(-scores, kind="stable") if entity % 2 == 0 and entity not in excluded]
    ((found, given),) = search.best(query, [Wish(10, excluded=excluded)])
    assert found.tolist() == even[:10]
    np.testing.assert_array_equal(given, scores[found])
    fresh = Fresh(np.array([7]), VectorTable.quantised(query), np.array([even[0]]), 400)
    ((found, _),) = search.best(query, [Wish(10, excluded=excluded)], fresh)
    assert found.tolist() == [7, *even[1:10]]
    ((found, _),) = search.best(query, [Wish(10, nearer=np.array([9]), weight=5.0)])
    assert found[0] == 9
    ((found, _),) = search.best(query, [Wish(5, allowed=np.arange(1, 400, 2))])
    assert found.tolist() == [entity for entity in np.argsort(-scores, kind="stable") if entity % 2][:5]


def test_recall_is_measured_and_widened_until_enough(folder, tmp_path, monkeypatch):
    shares = iter([0.5, 0.9, 0.97])
    monkeypatch.setattr(near_module.np, "isin", lambda best, keys: np.array([next(shares)]))
    monkeypatch.setattr(near_module, "_questions", lambda bundle, threads: np.ones((1, 16), np.float32))
    facts = build_near(Bundle.open(folder), tmp_path / "index", recall=0.95, threads=1)
    assert (facts["expansion_search"], facts["recall"]) == (256, 0.97)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: p.with_name(p.name + ".json").unlink(), "cannot be read"),
        (lambda p: p.with_name(p.name + ".json").write_text("{"), "cannot be read"),
        (lambda p: p.with_name(p.name + ".json").write_text("[]"), "does not describe an index"),
        (lambda p: p.unlink(), "is not the index that"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is not the index that"),
        (lambda p: p.write_bytes(bytes(byte ^ 1 for byte in p.read_bytes())), "was changed or damaged"),
    ],
)
def test_damaged_indices_are_refused(folder, index, tmp_path, break_it, message):
    for path in (index, index.with_name(f"{index.name}.json")):
        shutil.copy(path, tmp_path)
    break_it(tmp_path / index.name)
    with pytest.raises(NearError, match=message):
        Scorer.load(folder, threads=1, near=tmp_path / index.name, verify=True)


def test_another_bundles_index_is_refused(tiny_folder, tiny_int8_folder, tmp_path):
    build_near(Bundle.open(tiny_folder), tmp_path / "index", threads=1)
    with pytest.raises(NearError, match="of another bundle"):
        Scorer.load(tiny_int8_folder, threads=1, near=tmp_path / "index")


def test_without_usearch_the_cure_is_named(folder, index, monkeypatch):
    find = near_module.extras.importlib.util.find_spec
    monkeypatch.setattr(
        near_module.extras.importlib.util, "find_spec", lambda name: None if name == "usearch" else find(name)
    )
    with pytest.raises(MissingExtra, match=r"pip install 'pmd-kgc\[ann\]'"):
        Scorer.load(folder, threads=1, near=index)


def test_the_command(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        near_module.main([str(folder), "--out", str(tmp_path / "index"), "--recall", "0.9", "--threads", "1"])
    assert left.value.code == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["schema"], line["entities"]) == ("pmd-near/1", E)
    with pytest.raises(SystemExit) as left:
        near_module.main([str(tmp_path / "no-bundle"), "--out", str(tmp_path / "index")])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: no bundle at")
