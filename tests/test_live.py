"""A graph that changes answers as one built anew, and readers see no half change."""

from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_bundle import ENTITIES, tower_vectors

from pmd.serving import QueryError, Scorer, UnknownEntity
from pmd.serving import live as live_module

E = len(ENTITIES)
IDS = [row.id for row in ENTITIES]


@pytest.fixture(params=["float32", "int8"])
def scorer(request, tiny_folder, tiny_int8_folder) -> Scorer:
    return Scorer.load(tiny_folder if request.param == "float32" else tiny_int8_folder, threads=1)


def answers(scorer: Scorer):
    """Every answer to every question, with all options that read the graph, and every score of the present ids."""
    ids = scorer.entity_ids
    some = ids[::2]
    options = [{}, {"exclude_known": False}, {"reranked": True}, {"among": some}, {"among": lambda key: "e" in key}]
    found = [
        ask(scorer, key, relation, option)
        for option in options
        for relation in scorer.relation_ids
        for key in ids
        for ask in (
            lambda s, key, relation, option: s.top_tails(key, relation, k=E + 20, **option),
            lambda s, key, relation, option: s.top_heads(relation, key, k=3, **option),
        )
    ]
    triples = [(head, "causes", tail) for head in ids for tail in ids]
    return ids, found, scorer.score(triples).tolist(), scorer.evaluate(), scorer.evaluate(reranked=True)


def random_changes(scorer: Scorer, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["pain", "heart attack", "visitor", "a new name", "fever"]
    for number in range(count):
        ids, kind = scorer.entity_ids, rng.integers(4)
        name, key = names[rng.integers(len(names))], ids[rng.integers(len(ids))]
        if kind == 0 and len(ids) > 6:
            scorer.remove_entity(key)
        elif kind == 1:
            scorer.update_entity(key, name=name, description=["", "against pain"][rng.integers(2)])
        elif kind == 2:
            scorer.update_entity(key, vector=rng.standard_normal(16))
        else:
            new = IDS[rng.integers(E)] if rng.random() < 0.5 else f"new {number}"
            if new not in ids:
                scorer.add_entity(new, name=name, description="a drug" if number % 2 else "")


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_graph_answers_as_the_bundle_it_would_be_saved_as(scorer, tmp_path, seed):
    random_changes(scorer, seed, 15)
    assert scorer._graph.snapshot.weight_of_changes > 0
    saved = Scorer.load(scorer.save(tmp_path / "saved"), threads=1, verify=True)
    assert answers(scorer) == answers(saved)
    assert (scorer.num_entities, scorer.known.num_entities) == (saved.num_entities,) * 2


def test_changes_put_into_the_tables_change_no_answer(scorer, tiny_folder, monkeypatch):
    other = Scorer.load(scorer.bundle.path, threads=1)
    monkeypatch.setattr(live_module, "MOST_CHANGES", 3)
    random_changes(scorer, 9, 25)
    monkeypatch.setattr(live_module, "MOST_CHANGES", 1000)
    random_changes(other, 9, 25)
    assert scorer._graph.snapshot.weight_of_changes <= 3 < other._graph.snapshot.weight_of_changes
    assert answers(scorer) == answers(other)
    assert scorer._graph.snapshot.changes == other._graph.snapshot.changes


def test_an_update_keeps_the_triples_and_moves_the_vector(scorer):
    known = scorer.known.triples(0)
    scorer.update_entity("heart attack", name="infarct", description="")
    assert scorer.find_entity("infarct") == "heart_attack"
    assert scorer.find_entity("heart attack") is None
    np.testing.assert_array_equal(scorer.known.triples(0), known)
    state = scorer._graph.snapshot
    index = state.entities.find("infarct")
    assert "infarct" in state.texts.entity(state.entities.find("pain"))  # a neighbour's text says the new name
    if scorer.bundle.manifest["precision"] == "fp32":
        expected = tower_vectors([state.texts.entity(index)])[0]
        np.testing.assert_allclose(state.compacted.tables.vectors.vectors()[index], expected, atol=1e-6)


def test_an_update_of_what_is_not_given_keeps_it(scorer):
    before = scorer._graph.snapshot.rows[0]
    scorer.update_entity(before.id, vector=np.ones(16))
    assert scorer._graph.snapshot.rows[0] == before
    scorer.update_entity(before.id, description=" a  new\ttext ")
    assert scorer._graph.snapshot.rows[0] == before._replace(description="a new text")
    with pytest.raises(UnknownEntity, match="nearest: "):
        scorer.update_entity("nobody", name="x")
    with pytest.raises(QueryError, match="empty"):
        scorer.update_entity(before.id, name="")


def test_a_removed_name_is_free_again_and_never_suggested(scorer):
    scorer.remove_entity("aspirin")
    with pytest.raises(UnknownEntity) as raised:
        scorer.top_tails("aspirin", "treats")
    assert "aspirin" not in str(raised.value).split("nearest:")[1]
    with pytest.raises(UnknownEntity):
        scorer.top_tails("heart", "part_of", among=["aspirin"])
    scorer.add_entity("bayer", name="aspirin", vector=np.ones(16))
    assert scorer.find_entity("aspirin") == "bayer"
    scorer.add_entity("aspirin", name="aspirin", vector=np.ones(16))
    assert scorer.find_entity("aspirin") == "aspirin"


# ---- answers among some, explanations -----------------------------------------------------------------------


def test_among_keeps_order_and_scores(scorer):
    whole = scorer.top_tails("aspirin", "treats", k=E)
    some = {"pain", "fever", "heart", "body"}
    expected = [found for found in whole if found.entity in some]
    assert scorer.top_tails("aspirin", "treats", among=sorted(some)) == expected
    assert scorer.top_tails("aspirin", "treats", among=lambda key: key in some) == expected
    assert scorer.top_tails(["aspirin"], "treats", among=some) == [expected]
    assert scorer.top_tails("aspirin", "treats", among=[]) == []
    assert scorer.top_tails("aspirin", "treats", among=["heart attack", "heart_attack"], exclude_known=False) == [
        found
        for found in scorer.top_tails("aspirin", "treats", k=E, exclude_known=False)
        if found.entity == "heart_attack"
    ]
    for wrong in ("heart", 3, [3]):
        with pytest.raises(QueryError):
            scorer.top_tails("aspirin", "treats", among=wrong)


@pytest.mark.parametrize("reranked", [False, True])
def test_an_explanation_agrees_with_the_answers(scorer, reranked):
    for asks in ("tail", "head"):
        for given in IDS:
            ask = {"k": E, "reranked": reranked}
            found = (
                scorer.top_tails(given, "causes", **ask)
                if asks == "tail"
                else scorer.top_heads("causes", given, **ask)
            )
            for place, answer in enumerate(found, start=1):
                triple = (given, "causes", answer.entity) if asks == "tail" else (answer.entity, "causes", given)
                said = scorer.explain(*triple, asks=asks)
                assert (said.reranked_rank if reranked else said.rank) == place
                assert said.is_known is False
                if not reranked:
                    assert said.answer == answer


def test_an_explanation_shows_what_was_read_and_what_is_alike(scorer):
    said = scorer.explain("ibuprofen", "treats", "pain", triples=3)
    assert said.is_known
    assert (
        said.question_text
        == scorer._graph.snapshot.question("ibuprofen", "treats", inverse=False, is_text=False).text
    )
    assert said.answer_text.startswith("pain")
    assert all(scorer._graph.snapshot.rows[IDS.index(key)].name in said.question_text[0] for key in said.neighbours)
    facts = {
        (IDS[h], scorer.relation_ids[r], IDS[t]) for split in range(3) for h, r, t in scorer.known.triples(split)
    }
    assert 0 < len(said.nearest) <= 3
    alike = [near.head_cosine + near.tail_cosine for near in said.nearest]
    assert alike == sorted(alike, reverse=True)
    for near in said.nearest:
        assert (near.head, near.relation, near.tail) in facts
        assert (near.head, near.tail) != ("ibuprofen", "pain")
        assert near.relation == "treats"
        assert -1 <= near.head_cosine <= 1
        if near.head == "ibuprofen":
            assert near.head_cosine == pytest.approx(1, abs=0.01)
    turned = scorer.explain("ibuprofen", "treats", "pain", asks="head", triples=50)
    assert {(near.head, near.relation, near.tail) for near in turned.nearest} <= facts
    by_text = scorer.explain("something new", "treats", "pain", is_text=True)
    assert all(near.head_cosine is None for near in by_text.nearest)
    assert (by_text.reranked_rank, by_text.neighbours, by_text.is_known) == (None, (), False)
    plain = said.as_dict()
    assert plain["answer"]["entity"] == "pain"
    assert plain["nearest"][0]["relation"] == "treats"
    with pytest.raises(QueryError, match="asks is 'tail' or 'head'"):
        scorer.explain("ibuprofen", "treats", "pain", asks="relation")


# ---- threads ------------------------------------------------------------------------------------------------

QUESTIONS = [("aspirin", "treats"), ("heart", "part_of"), ("diabetes", "causes"), ("pain", "causes")]


def ask_all(scorer: Scorer):
    return [scorer.top_tails(head, relation, k=E + 5) for head, relation in QUESTIONS]


def make_change(scorer: Scorer, number: int) -> None:
    """The change with this number: a visitor comes, moves and leaves, and an old entity moves."""
    rng = np.random.default_rng(number)
    visitor = f"visitor {number // 4}"
    if number % 4 == 0:
        scorer.add_entity(visitor, name=f"guest {number}", vector=rng.standard_normal(16))
    elif number % 4 == 1:
        scorer.update_entity(visitor, name=f"friend {number}", vector=rng.standard_normal(16))
    elif number % 4 == 2:
        scorer.update_entity("fever", vector=rng.standard_normal(16))
    else:
        scorer.remove_entity(visitor)


def torn_answers(scorer: Scorer, folder, threads: int, seconds: float) -> tuple[int, int, list[str]]:
    """Answers given, changes made, and the answers of no version between their question's start and end."""
    begun, done, stop = [0], [0], threading.Event()
    given: list[tuple[int, int, int, object]] = []

    def read(place: int) -> None:
        while not stop.is_set():
            question = place % len(QUESTIONS)
            first = done[0]
            found = scorer.top_tails(*QUESTIONS[question], k=E + 5)
            given.append((question, first, begun[0], hash(tuple(found))))
            place += 1

    def write() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begun[0] += 1
            make_change(scorer, begun[0] - 1)
            done[0] += 1
        stop.set()

    with ThreadPoolExecutor(threads + 1) as pool:
        tasks = [pool.submit(read, place) for place in range(threads)]
        pool.submit(write).result()
        for task in tasks:
            task.result()
    replay = Scorer.load(folder, threads=1)
    versions = [[hash(tuple(found)) for found in ask_all(replay)]]
    for number in range(begun[0]):
        make_change(replay, number)
        versions.append([hash(tuple(found)) for found in ask_all(replay)])
    torn = [
        f"question {question} between {first} and {last}"
        for question, first, last, found in given
        if found not in {versions[version][question] for version in range(first, last + 1)}
    ]
    return len(given), begun[0], torn


def test_no_reader_sees_a_version_that_never_was(scorer, monkeypatch):
    monkeypatch.setattr(live_module, "MOST_CHANGES", 7)
    count, changes, torn = torn_answers(scorer, scorer.bundle.path, threads=8, seconds=1.0)
    assert count > 50
    assert changes > 20
    assert torn == []


@pytest.mark.slow
def test_64_threads_for_a_minute(tiny_int8_folder, monkeypatch, record_property):
    monkeypatch.setattr(live_module, "MOST_CHANGES", 100)
    scorer = Scorer.load(tiny_int8_folder, threads=1, cached_queries=3)
    torn_answers(Scorer.load(tiny_int8_folder, threads=1), tiny_int8_folder, threads=64, seconds=3.0)  # warm
    before = resident_mib()
    count, changes, torn = torn_answers(scorer, tiny_int8_folder, threads=64, seconds=60.0)
    grown = resident_mib() - before
    record_property("answers, changes, grown MiB", f"{count}, {changes}, {grown:.1f}")
    assert count > 1000
    assert changes > 100
    assert torn == []
    assert grown < 50  # what the test itself noted of each answer, and nothing that grows with the changes


def resident_mib() -> float:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
