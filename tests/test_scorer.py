"""The Scorer: its three ways of scoring agree, its rules hold, and changes never disturb who is reading."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_bundle import ENTITIES, RELATIONS, TEST_TRIPLES, TRAIN, VALID_TRIPLES, indexed, tower_vectors

import pmd.serving
from pmd.serving import BundleError, Prediction, QueryError, Scorer, UnknownEntity, UnknownRelation
from pmd.serving import saving as saving_module
from pmd.serving.archive import pack
from pmd.serving.bundle import ENTITY, MANIFEST
from pmd.serving.ranking import RankingError, evaluate
from pmd.serving.storage import StorageError

E, R = len(ENTITIES), len(RELATIONS)
FACTS = {*TRAIN, *VALID_TRIPLES, *TEST_TRIPLES}
IDS = [row.id for row in ENTITIES]


@pytest.fixture(params=["float32", "int8"])
def scorer(request, tiny_folder, tiny_int8_folder) -> Scorer:
    return Scorer.load(tiny_folder if request.param == "float32" else tiny_int8_folder, threads=1)


def all_queries():
    return np.repeat(np.arange(E), 2 * R), np.tile(np.arange(2 * R), E)


# ---- the surface --------------------------------------------------------------------------------------------


def test_public_names_are_pinned_and_sorted():
    assert pmd.serving.__all__ == [
        "BundleError",
        "MissingExtra",
        "PlatformError",
        "PmdError",
        "Prediction",
        "ProviderError",
        "QueryError",
        "Scorer",
        "ServingError",
        "SignatureError",
        "UnknownEntity",
        "UnknownRelation",
    ]
    assert all(hasattr(pmd.serving, name) for name in pmd.serving.__all__)


def test_what_a_scorer_knows(tiny_scorer):
    assert tiny_scorer.entity_ids == tuple(IDS)
    assert tiny_scorer.relation_ids == ("treats", "part_of", "causes")
    assert (tiny_scorer.num_entities, tiny_scorer.num_relations) == (E, R)
    assert tiny_scorer.bundle.manifest["dataset"] == "tiny"
    assert tiny_scorer.known.triples(2).tolist() == sorted(
        indexed(TEST_TRIPLES).tolist(), key=lambda t: (t[1], t[0])
    )


# ---- scoring ------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_towers_in_numpy(tiny_scorer):
    heads, relations = all_queries()
    texts = tiny_scorer._graph.snapshot.texts
    queries = tower_vectors([texts.query(h, r) for h, r in zip(heads, relations, strict=True)])
    answers = tower_vectors([texts.entity(index) for index in range(E)])
    np.testing.assert_allclose(tiny_scorer.score_queries(heads, relations), queries @ answers.T, rtol=0, atol=1e-6)


def test_three_ways_of_scoring_agree_to_the_last_bit(scorer):
    heads, relations = all_queries()
    table = np.concatenate(
        [scorer.score_queries(heads[i : i + 1], relations[i : i + 1]) for i in range(len(heads))]
    )
    table = table.reshape(E, 2 * R, E)
    for head in range(E):
        for relation in range(R):
            name = RELATIONS[relation].id
            triples = [(IDS[head], name, tail) for tail in IDS]
            tails = scorer.top_tails(IDS[head], name, k=E, exclude_known=False)
            heads_found = scorer.top_heads(name, IDS[head], k=E, exclude_known=False)
            by_tail = {found.entity: np.float32(found.score) for found in tails}
            by_head = {found.entity: np.float32(found.score) for found in heads_found}
            np.testing.assert_array_equal([by_tail[i] for i in IDS], table[head, relation])
            np.testing.assert_array_equal([by_head[i] for i in IDS], table[head, relation + R])
            np.testing.assert_allclose(scorer.score(triples), table[head, relation], rtol=0, atol=1e-6)


def test_int8_answers_are_the_same_bits_alone_and_in_a_batch(tiny_int8_folder):
    """The graph quantises by the batch and the vectors by the row; neither may show."""
    scorer = Scorer.load(tiny_int8_folder, threads=1)
    heads = [row.id for row in ENTITIES]
    together = scorer.top_tails(heads, "causes", k=E, exclude_known=False)
    assert together == [scorer.top_tails(head, "causes", k=E, exclude_known=False) for head in heads]
    triples = [(head, "causes", "pain") for head in heads]
    np.testing.assert_array_equal(scorer.score(triples), [scorer.score([triple])[0] for triple in triples])
    assert [dict((p.entity, p.score) for p in row)["pain"] for row in together] == scorer.score(triples).tolist()


def test_answers_come_best_first_and_k_may_be_anything_from_1(scorer):
    everything = scorer.top_tails("fever", "causes", k=E + 50)
    assert sorted(found.entity for found in everything) == sorted(set(IDS) - {"cold_illness"})
    assert [found.score for found in everything] == sorted((found.score for found in everything), reverse=True)
    assert scorer.top_tails("fever", "causes", k=3) == everything[:3]
    assert all(isinstance(found, Prediction) and isinstance(found.score, float) for found in everything)
    assert len(scorer.top_tails("fever", "causes")) == 10


def test_known_answers_are_left_out_unless_asked_for(scorer):
    for head in IDS:
        for relation in scorer.relation_ids:
            known_tails = {t for h, r, t in FACTS if (h, r) == (head, relation)}
            known_heads = {h for h, r, t in FACTS if (t, r) == (head, relation)}
            assert {p.entity for p in scorer.top_tails(head, relation, k=E)} == set(IDS) - known_tails
            assert {p.entity for p in scorer.top_heads(relation, head, k=E)} == set(IDS) - known_heads
            assert len(scorer.top_tails(head, relation, k=E, exclude_known=False)) == E


def test_lists_give_lists(scorer):
    one = [scorer.top_tails("aspirin", "treats"), scorer.top_tails("heart", "part_of")]
    both = scorer.top_tails(["aspirin", "heart"], ["treats", "part_of"])
    for found, expected in zip(both, one, strict=True):
        assert [p.entity for p in found] == [p.entity for p in expected]
        np.testing.assert_allclose([p.score for p in found], [p.score for p in expected], rtol=0, atol=1e-6)
    assert scorer.top_tails(["aspirin"], "treats") == [one[0]]
    assert scorer.top_tails(("aspirin", "aspirin"), "treats")[1] == one[0]
    assert len(scorer.top_tails("aspirin", ["treats", "causes"])) == 2
    assert scorer.top_tails([], "treats") == []
    found = scorer.top_heads(["treats", "causes"], ["pain", "pain"])[0]
    assert [p.entity for p in found] == [p.entity for p in scorer.top_heads("treats", "pain")]


def test_a_long_list_is_answered_in_pieces(tiny_scorer, monkeypatch):
    heads = IDS * 3
    whole = tiny_scorer.top_tails(heads, "causes")
    monkeypatch.setattr("pmd.serving.search.QUERIES_AT_ONCE", 5)
    split = tiny_scorer.top_tails(heads, "causes")
    assert [[p.entity for p in row] for row in split] == [[p.entity for p in row] for row in whole]


def test_names_serve_as_ids_where_they_are_unique(scorer):
    assert scorer.top_tails("heart attack", "causes") == scorer.top_tails("heart_attack", "causes")
    assert scorer.top_tails("heart", "part of") == scorer.top_tails("heart", "part_of")
    assert scorer.score([("heart attack", "part of", "body")]) == scorer.score(
        [("heart_attack", "part_of", "body")]
    )
    assert scorer.find_entity("heart attack") == "heart_attack"
    assert scorer.find_entity("cold") is None
    assert scorer.find_entity("nobody") is None


def test_a_text_is_answered_as_an_entity_without_neighbours_or_known_answers(tiny_scorer):
    text = "aspirin: a drug against pain and fever"
    (found,) = tiny_scorer.top_tails([text], "treats", k=E, head_is_text=True)
    assert len(found) == E
    vector = tower_vectors([(text, "treats")])[0]
    answers = tower_vectors([tiny_scorer._graph.snapshot.texts.entity(index) for index in range(E)])
    scores = {p.entity: p.score for p in found}
    np.testing.assert_allclose([scores[i] for i in IDS], answers @ vector, rtol=0, atol=1e-6)
    assert tiny_scorer.top_heads("treats", text, tail_is_text=True) != tiny_scorer.top_tails(
        text, "treats", head_is_text=True
    )


# ---- mistakes -----------------------------------------------------------------------------------------------


def test_unknown_ids_name_the_three_nearest(tiny_scorer):
    with pytest.raises(
        UnknownEntity, match="no entity has the id or name 'hart'; nearest: heart, heart_attack, "
    ) as e:
        tiny_scorer.top_tails("hart", "treats")
    assert str(e.value).count(",") == 2
    with pytest.raises(UnknownEntity, match="nearest: heart_attack, "):
        tiny_scorer.score([("aspirin", "treats", "heart-attack")])
    with pytest.raises(UnknownRelation, match="no relation has the id or name 'treat'; nearest: treats, "):
        tiny_scorer.top_heads("treat", "pain")
    with pytest.raises(UnknownEntity, match="x…'; nearest"):
        tiny_scorer.top_tails("x" * 1_000_000, "treats")


def test_an_ambiguous_name_lists_its_bearers(tiny_scorer):
    with pytest.raises(UnknownEntity, match="2 entities are named 'cold'; give an id: cold_illness, cold_weather"):
        tiny_scorer.top_tails("cold", "causes")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.top_tails("heart", "part_of", k=0), "k must be 1 or more, got 0"),
        (lambda s: s.top_tails("heart", "part_of", k=-3), "k must be 1 or more, got -3"),
        (lambda s: s.top_tails("heart", "part_of", k=2.5), "k must be a whole number, got 2.5"),
        (lambda s: s.top_tails("", "part_of", head_is_text=True), "empty"),
        (lambda s: s.top_heads("part_of", " \n", tail_is_text=True), "empty"),
        (lambda s: s.top_tails(None, "part_of"), "NoneType"),
        (lambda s: s.top_tails([3], "part_of"), "entities are given by id or name, got int"),
        (lambda s: s.top_tails("\udcff", "part_of", head_is_text=True), "not valid Unicode"),
        (lambda s: s.top_tails(["heart", "body"], ["part_of"]), "2 entities and 1 relations"),
        (lambda s: s.score([("heart", "part_of")]), "a triple is"),
        (lambda s: s.score(["abc"]), "a triple is"),
        (lambda s: s.score([3]), "a triple is"),
        (lambda s: s.score_queries(np.array([0, 1]), np.array([0])), "equally long"),
        (lambda s: s.score_queries(np.array([E]), np.array([0])), "head index is out of range, expected 0 to 11"),
        (
            lambda s: s.score_queries(np.array([0]), np.array([2 * R])),
            "relation index is out of range, expected 0 to 5",
        ),
        (lambda s: s.score_queries(np.array([0]), np.array([-1])), "relation index is out of range"),
        (lambda s: s.score_queries(np.array([0.5]), np.array([0])), "whole numbers"),
        (lambda s: s.evaluate("tests"), "no split 'tests'; a bundle has train, valid, test"),
    ],
)
def test_questions_that_cannot_be_answered(tiny_scorer, ask, message):
    before = tiny_scorer.top_tails("heart", "part_of")
    with pytest.raises(QueryError, match=message) as raised:
        ask(tiny_scorer)
    assert "\n" not in str(raised.value)
    assert tiny_scorer.top_tails("heart", "part_of") == before


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "a\0b",
        "heart " * 20_000,
        "x" * 100_000,
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "e" + "\u0301" * 500,
        "\u202eright to left\u202c",
        "\ufeffheart",
        "\U0010ffff\uffff",
        "\r\n\theart",
    ],
)
@pytest.mark.parametrize("k", [1, E, E + 1, 10**30])
def test_odd_texts_and_any_k_from_1_are_answered(scorer, text, k):
    for found in (
        scorer.top_tails(text, "part_of", k=k, head_is_text=True),
        scorer.top_heads("part_of", text, k=k, tail_is_text=True),
    ):
        assert len(found) == min(k, E)
        assert np.isfinite([answer.score for answer in found]).all()


def test_empty_batches(tiny_scorer):
    nothing = np.zeros(0, np.int64)
    assert tiny_scorer.score([]).shape == (0,)
    assert tiny_scorer.score_queries(nothing, nothing).shape == (0, E)


def test_scores_that_are_not_finite_raise(tiny_scorer, monkeypatch):
    monkeypatch.setattr(tiny_scorer, "_encoder", lambda texts: np.full((len(texts), 16), np.nan, np.float32))
    for ask in (
        lambda: tiny_scorer.top_tails("heart", "part_of"),
        lambda: tiny_scorer.score([("heart", "part_of", "body")]),
        tiny_scorer.evaluate,
    ):
        with pytest.raises(RankingError, match="NaN or infinity"):
            ask()


# ---- evaluation ---------------------------------------------------------------------------------------------


def brute_metrics(scorer, triples, bonus=None):
    """Filtered realistic ranks by the definition, one triple and one candidate at a time."""
    ranks = {"tail": [], "head": []}
    for h, r, t in triples:
        for side, key, relation, gold in (("tail", h, r, t), ("head", t, r + R, h)):
            scores = scorer.score_queries(np.array([key]), np.array([relation]))[0].copy()
            if bonus:
                scores[list(bonus(key))] += np.float32(0.2)
            known = {x for a, b, x in indexed(tuple(FACTS)).tolist() if (a, b) == (key, relation)}
            known |= {x for x, b, c in indexed(tuple(FACTS)).tolist() if (c, b + R) == (key, relation)}
            rivals = [scores[e] for e in range(E) if e != gold and e not in known]
            better, tied = sum(s > scores[gold] for s in rivals), sum(s == scores[gold] for s in rivals)
            ranks[side].append(1 + better + tied / 2)

    def summary(values):
        hits = {f"hits@{k}": np.mean([v <= k for v in values]) for k in (1, 3, 10)}
        return {
            "mrr": np.mean([1 / v for v in values]),
            "mean_rank": np.mean(values),
            **hits,
            "queries": len(values),
        }

    both = summary(ranks["tail"] + ranks["head"])
    return both, summary(ranks["head"]), summary(ranks["tail"])


@pytest.mark.parametrize(("split", "triples"), [("test", TEST_TRIPLES), ("valid", VALID_TRIPLES), ("train", TRAIN)])
def test_evaluate_equals_the_definition(scorer, split, triples):
    metrics = scorer.evaluate(split)
    both, head, tail = brute_metrics(scorer, indexed(triples).tolist())
    assert metrics["head"] == pytest.approx(head)
    assert metrics["tail"] == pytest.approx(tail)
    assert {key: metrics[key] for key in both} == pytest.approx(both)


def test_evaluate_reranked_equals_the_definition_and_differs(tiny_scorer):
    edges = [(h, t) for h, _, t in indexed(TRAIN).tolist()]

    def near(key):
        return {t for h, t in edges if h == key} | {h for h, t in edges if t == key}

    both, head, tail = brute_metrics(tiny_scorer, indexed(TEST_TRIPLES).tolist(), near)
    metrics = tiny_scorer.evaluate("test", reranked=True)
    assert metrics["head"] == pytest.approx(head)
    assert metrics["tail"] == pytest.approx(tail)
    assert metrics["mrr"] == pytest.approx(both["mrr"])
    assert metrics["mrr"] != pytest.approx(tiny_scorer.evaluate("test")["mrr"])


def test_evaluate_equals_the_figures_of_the_trainer(tiny_scorer):
    figures = tiny_scorer.bundle.manifest["metrics"]
    assert tiny_scorer.evaluate("test") == figures["test"]
    assert tiny_scorer.evaluate("valid") == figures["valid"]
    assert tiny_scorer.evaluate("test", reranked=True) == figures["test_reranked"]


def test_evaluate_without_the_filter_would_differ(tiny_scorer, monkeypatch):
    """If the known answers stopped being filtered, the figures would change: this graph can tell."""
    filtered = tiny_scorer.evaluate("test")["mrr"]
    nothing = np.zeros(0, np.int64)
    monkeypatch.setattr(type(tiny_scorer.known), "pairs", lambda *_: (nothing, nothing))
    assert tiny_scorer.evaluate("test")["mrr"] < filtered


def test_a_bundle_without_reranking_says_so(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    manifest = {**json.loads((folder / MANIFEST).read_text()), "rerank": None}
    del manifest["digest"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    scorer = Scorer.load(folder, threads=1)
    assert scorer.evaluate()["queries"] == 2 * len(TEST_TRIPLES)
    with pytest.raises(QueryError, match="no re-ranking settings"):
        scorer.evaluate(reranked=True)


# ---- changes ------------------------------------------------------------------------------------------------


def test_an_added_entity_answers_and_asks_and_disturbs_no_one(scorer):
    before = scorer.top_tails("aspirin", "treats", k=E)
    known = scorer.known.triples(0)
    scorer.add_entity("paracetamol", name="paracetamol", description="a drug\tagainst  pain and\nfever")
    assert scorer.num_entities == E + 1
    assert [p for p in scorer.top_tails("aspirin", "treats", k=E + 1) if p.entity != "paracetamol"] == before
    # names that the vocabulary lacks: the rest of the text puts it next to aspirin
    score = {p.entity: p.score for p in scorer.top_heads("treats", "fever", k=E + 1, exclude_known=False)}
    assert abs(score["paracetamol"] - score["aspirin"]) < 0.3
    assert len(scorer.top_tails("paracetamol", "treats", k=50)) == E + 1
    np.testing.assert_array_equal(scorer.known.triples(0), known)
    assert scorer._graph.snapshot.compacted.tables.entities[-1].description == "a drug against pain and fever"


def test_an_added_entity_has_the_vector_of_its_text(tiny_scorer):
    tiny_scorer.add_entity("new", name="pain", description="an illness")
    vector = tiny_scorer._graph.snapshot.compacted.tables.vectors.vectors()[E]
    np.testing.assert_allclose(vector, tower_vectors(["pain: an illness"])[0], rtol=0, atol=1e-6)


def test_an_entity_may_bring_its_vector(scorer):
    vector = np.zeros(16)
    vector[3] = -7.0
    scorer.add_entity("axis", name="axis", vector=vector)
    np.testing.assert_allclose(scorer._graph.snapshot.compacted.tables.vectors.vectors()[E], vector / 7, atol=1e-6)
    scorer.add_entity("axis2", name="axis", vector=vector.tolist())
    assert scorer.find_entity("axis") == "axis"  # an id goes before a name, however many share the name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heart", {"name": "heart"}), "entity 'heart' exists already"),
        (("", {"name": "x"}), "empty"),
        (("a\tb", {"name": "x"}), "no tabs or line breaks"),
        ((" a", {"name": "x"}), "no outer spaces"),
        (("a", {"name": " "}), "empty"),
        (("a", {"name": "x", "description": "\udcff"}), "not valid Unicode"),
        (("a", {"name": "x", "vector": [1.0, 2.0]}), r"vector must be 16 finite numbers.*shape \(2,\)"),
        (("a", {"name": "x", "vector": [0.0] * 16}), "not all 0"),
        (("a", {"name": "x", "vector": [float("nan")] * 16}), "16 finite numbers"),
        (("a", {"name": "x", "vector": ["b"] * 16}), "vector must be 16 numbers"),
    ],
)
def test_entities_that_cannot_be_added(tiny_scorer, arguments, message):
    entity, options = arguments
    with pytest.raises(QueryError, match=message):
        tiny_scorer.add_entity(entity, **options)
    assert tiny_scorer.num_entities == E


@pytest.mark.parametrize("size", [1e-200, 1e-40, 1e38, 1e200])
def test_the_size_of_a_vector_given_does_not_matter(tiny_folder, size):
    scores = []
    for length in (1.0, size):
        scorer = Scorer.load(tiny_folder, threads=1)
        scorer.add_entity("new", name="new", vector=np.arange(1.0, 17.0) * length)
        scores.append(scorer.score([("aspirin", "treats", "new")])[0])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_without_an_entity_tower_a_vector_is_needed(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    shutil.rmtree(folder / ENTITY)
    scorer = Scorer.load(folder, threads=1)
    with pytest.raises(QueryError, match="has no entity tower to read 'new' with; give vector="):
        scorer.add_entity("new", name="new")
    scorer.add_entity("new", name="new", vector=np.ones(16))
    assert scorer.num_entities == E + 1


def test_adding_and_removing_comes_back_to_the_start(scorer):
    before = [scorer.top_tails(head, "causes", k=E) for head in IDS]
    metrics = scorer.evaluate()
    scorer.add_entity("new", name="new pain")
    scorer.remove_entity("new")
    assert [scorer.top_tails(head, "causes", k=E) for head in IDS] == before
    assert scorer.evaluate() == metrics


def test_a_removed_entity_is_gone_with_its_triples(tiny_scorer):
    tiny_scorer.remove_entity("heart attack")
    assert tiny_scorer.num_entities == E - 1
    assert "heart_attack" not in tiny_scorer.entity_ids
    names = tiny_scorer.entity_ids
    left = {
        (names[h], tiny_scorer.relation_ids[r], names[t])
        for s in range(3)
        for h, r, t in tiny_scorer.known.triples(s)
    }
    assert left == {(h, r, t) for h, r, t in FACTS if "heart_attack" not in (h, t)}
    for relation in tiny_scorer.relation_ids:
        assert "heart_attack" not in {p.entity for p in tiny_scorer.top_tails("diabetes", relation, k=E)}
    # its name no longer follows the texts of its neighbours
    assert "heart attack" not in tiny_scorer._graph.snapshot.texts.entity(names.index("pain"))
    with pytest.raises(UnknownEntity):
        tiny_scorer.remove_entity("heart_attack")


def test_the_last_entity_stays(tiny_scorer):
    for key in IDS[1:]:
        tiny_scorer.remove_entity(key)
    with pytest.raises(QueryError, match="is the only entity"):
        tiny_scorer.remove_entity(IDS[0])
    assert [p.entity for p in tiny_scorer.top_tails(IDS[0], "treats")] == [IDS[0]]


# ---- saving -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["saved", "saved.zip"])
@pytest.mark.parametrize("source", ["folder", "zip"])
def test_saved_is_what_was_in_memory(scorer, tmp_path, name, source):
    if source == "zip":
        packed = tmp_path / "source.zip"
        pack(scorer.bundle.path, packed)
        scorer = Scorer.load(packed, threads=1)
    scorer.add_entity("paracetamol", name="paracetamol", description="a drug against fever")
    scorer.remove_entity("heart")
    target = scorer.save(tmp_path / "deep" / name)
    again = Scorer.load(target, threads=1, verify=True)
    assert again.entity_ids == scorer.entity_ids
    for head in again.entity_ids:
        assert again.top_tails(head, "treats", k=E) == scorer.top_tails(head, "treats", k=E)
    assert again.evaluate() == scorer.evaluate()
    assert again.bundle.manifest["changes"] == {"added": 1, "removed": 1, "updated": 0}
    again.remove_entity("paracetamol")
    assert Scorer.load(again.save(tmp_path / "twice"), threads=1).bundle.manifest["changes"] == {
        "added": 1,
        "removed": 2,
        "updated": 0,
    }
    again.add_entity("paracetamol", name="paracetamol")  # the entity tower came along


def test_saving_without_a_change_is_the_same_bundle(scorer, tmp_path):
    target = scorer.save(tmp_path / "copy")
    assert (target / MANIFEST).read_text() == (scorer.bundle.path / MANIFEST).read_text()


@pytest.mark.parametrize("name", ["saved", "saved.zip"])
def test_an_existing_target_is_refused_or_replaced(tiny_scorer, tmp_path, name):
    target = tiny_scorer.save(tmp_path / name)
    with pytest.raises(StorageError, match="exists already"):
        tiny_scorer.save(target)
    loaded = Scorer.load(target, threads=1)
    loaded.add_entity("new", name="new")
    loaded.save(target, replace=True)  # onto the very bundle it reads from
    answers = loaded.top_tails("new", "treats", k=20)
    assert Scorer.load(target, threads=1, verify=True).top_tails("new", "treats", k=20) == answers
    loaded.add_entity("newer", name="newer")
    loaded.save(target, replace=True)
    assert Scorer.load(target, threads=1, verify=True).num_entities == E + 2


@pytest.mark.parametrize("name", ["saved", "saved.zip"])
def test_ctrl_c_while_saving_leaves_nothing(tiny_scorer, tmp_path, monkeypatch, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(saving_module, "seal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_scorer.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_changed_on_disk_since_loading_is_not_saved_on(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    scorer = Scorer.load(folder, threads=1)
    (folder / "README.md").write_text("# something else entirely\n")
    with pytest.raises(BundleError, match=r"README\.md is not what the manifest's sha256 says"):
        scorer.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# ---- zip, threads -------------------------------------------------------------------------------------------


def test_a_zip_gives_the_answers_of_the_folder(scorer, tmp_path):
    pack(scorer.bundle.path, tmp_path / "bundle.zip")
    zipped = Scorer.load(tmp_path / "bundle.zip", threads=1, verify=True)
    for relation in scorer.relation_ids:
        assert zipped.top_tails(IDS, relation, k=E) == scorer.top_tails(IDS, relation, k=E)
        assert zipped.top_heads([relation] * E, IDS) == scorer.top_heads([relation] * E, IDS)
    assert zipped.evaluate() == scorer.evaluate()
    text = "a drug against sugar"
    assert zipped.top_tails(text, "treats", head_is_text=True) == scorer.top_tails(
        text, "treats", head_is_text=True
    )


def test_cached_queries_change_no_answer(tiny_int8_folder):
    plain = Scorer.load(tiny_int8_folder, threads=1)
    cached = Scorer.load(tiny_int8_folder, threads=1, cached_queries=4)
    for _ in range(3):
        for head in IDS:
            assert cached.top_tails(head, "treats") == plain.top_tails(head, "treats")


def test_readers_are_undisturbed_by_a_writer(tiny_scorer):
    """While entities come and go, every answer is that of the graph before or after a change, never a mixture."""
    expected = tiny_scorer.top_tails("aspirin", "treats", k=E)
    stop = threading.Event()

    def write():
        for _ in range(40):
            tiny_scorer.add_entity("visitor", name="visitor", vector=np.ones(16))
            tiny_scorer.remove_entity("visitor")
        stop.set()

    def read() -> int:
        rounds = 0
        while not stop.is_set() or rounds == 0:
            found = tiny_scorer.top_tails("aspirin", "treats", k=E + 1)
            assert [p for p in found if p.entity != "visitor"] == expected
            assert tiny_scorer.evaluate("test")["queries"] == 2 * len(TEST_TRIPLES)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        pool.submit(write).result()
        assert all(reader.result() > 0 for reader in readers)
    assert tiny_scorer.num_entities == E


def test_writers_do_not_lose_each_others_changes(tiny_scorer):
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(tiny_scorer.add_entity, f"new{number}", name="new", vector=np.ones(16))
            for number in range(20)
        ]
        for job in jobs:
            job.result()
    assert sorted(tiny_scorer.entity_ids) == sorted([*IDS, *(f"new{number}" for number in range(20))])


def test_the_scorer_is_what_ranking_needs(tiny_scorer):
    """`score_queries` is a ScoreQueries: the bench ranks with it directly."""
    metrics = evaluate(tiny_scorer.score_queries, indexed(TEST_TRIPLES), tiny_scorer.known)
    assert metrics["mrr"] == pytest.approx(tiny_scorer.evaluate("test")["mrr"])
