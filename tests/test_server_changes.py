"""Changes over HTTP: entities put in and taken out, bundles opened afresh, and who may ask for it."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_http import PATIENCE, GatedScorer, client_of
from test_server import ONE, QUESTION, error, find_references, plain
from tiny_bundle import ENTITIES, WIDTH, write_tiny_bundle

from pmd.serving import Scorer
from pmd.serving.server.app import create_app
from pmd.serving.server.completion import Completion, LiveCompletion
from pmd.serving.server.limits import Limits

ADMIN = {"Authorization": "Bearer may-change"}
ENTITY = {"id": "naproxen", "name": "naproxen", "description": "a drug against pain"}


@pytest.fixture
def folder(tmp_path, tiny_folder):
    return shutil.copytree(tiny_folder, tmp_path / "bundle")


class Bundle:
    """A bundle that is served with its changes, and how often it was opened."""

    def __init__(self, folder, journal=None):
        self.folder, self.journal, self.opened = folder, journal, []
        self.app = create_app(
            {"tiny": self.open("tiny", None)}, admin_key=b"may-change", reopen=self.open, limits=Limits(max_k=50)
        )

    def open(self, name, before):
        self.opened.append(Scorer.load(self.folder, threads=1, journal=before or self.journal))
        return self.opened[-1]

    def client(self, **headers):
        return client_of(self.app, headers=ADMIN | headers)


def about(client):
    return client.get("/v1/bundles").json()["bundles"][0]


def names(client, query):
    found = client.get(f"{ONE}/entities", params={"query": query}).json()["entities"]
    return [(entity["id"], entity["name"]) for entity in found]


def test_changes_are_those_of_a_scorer(folder, tiny_scorer):
    with Bundle(folder).client() as client:
        added = client.post(f"{ONE}/entities", json=ENTITY)
        assert added.status_code == 201 and added.json() == {
            "entity": "naproxen",
            "entities": 13,
            "changes": {"added": 1, "removed": 0, "updated": 0},
            "kept": False,
        }
        tiny_scorer.add_entity("naproxen", name="naproxen", description="a drug against pain")
        assert client.post(f"{ONE}/tails", json=QUESTION | {"head": "naproxen"}).json() == plain(
            tiny_scorer.top_tails("naproxen", "treats")
        )
        vector = [1.0] + [0] * (WIDTH - 1)
        changed = client.patch(f"{ONE}/entities/heart attack", json={"name": "infarct", "vector": vector})
        assert changed.status_code == 200 and changed.json()["entity"] == "heart_attack"
        tiny_scorer.update_entity("heart attack", name="infarct", vector=vector)
        assert client.request("DELETE", f"{ONE}/entities/pain").json()["entities"] == 12
        tiny_scorer.remove_entity("pain")
        for head in ("infarct", "aspirin"):
            asked = client.post(f"{ONE}/tails", json={"head": head, "relation": "causes", "k": 20})
            assert asked.json() == plain(tiny_scorer.top_tails(head, "causes", k=20))
        assert about(client)["changes"] == {"added": 1, "removed": 1, "updated": 1}
        lines = client.get("/metrics").text.splitlines()
        for kind in ("add", "update", "remove"):
            assert f'pmd_entity_changes_total{{bundle="tiny",kind="{kind}"}} 1.0' in lines
        assert 'pmd_entities{bundle="tiny"} 12.0' in lines


def test_wrong_changes(folder):
    with Bundle(folder).client() as client:

        def refused(method, path, **given):
            return error(client.request(method, f"{ONE}/{path}", **given))

        taken = refused("POST", "entities", json=ENTITY | {"id": "pain"})
        assert taken[:2] == (409, "entity_exists") and "'pain'" in taken[2]
        for wrong in ({"name": " "}, {"id": "a\tb"}, {"vector": [1, 2]}, {"vector": [0] * WIDTH}, {"more": 1}):
            assert refused("POST", "entities", json=ENTITY | wrong)[:2] == (422, "unusable_question"), wrong
        assert refused("POST", "entities", json=ENTITY | {"vector": ["1"] * WIDTH})[0] == 422
        assert refused("POST", "entities", json={"id": "x"})[2] == "field 'name' is missing"
        huge = json.dumps(ENTITY | {"vector": [1] * WIDTH}).replace("[1", "[1e999")
        assert refused("POST", "entities", content=huge, headers={"Content-Type": "application/json"})[0] == 422
        assert refused("POST", "entities", content=b"{}")[:2] == (415, "wrong_content_type")
        absent = refused("PATCH", "entities/pian", json={"name": "x"})
        assert absent[:2] == (404, "unknown_entity") and "pain" in absent[2]
        assert "nothing to change" in refused("PATCH", "entities/pain", json={})[2]
        assert refused("DELETE", "entities/nobody")[:2] == (404, "unknown_entity")
        assert "2 entities are named 'cold'" in refused("DELETE", "entities/cold")[2]
        assert refused("PUT", "entities/pain", json={})[0] == 405
        allowed = client.request("PUT", f"{ONE}/entities").headers["Allow"]
        assert sorted(allowed.split(", ")) == ["GET", "HEAD", "POST"]
        assert error(client.post("/v1/bundles/none/reload"))[:2] == (404, "unknown_bundle")
        assert error(client.post("/v1/bundles/none/entities", json=ENTITY))[:2] == (404, "unknown_bundle")
        assert about(client)["entities"] == len(ENTITIES)


def test_ids_with_slashes_have_an_address(folder):
    with Bundle(folder).client() as client:
        assert client.post(f"{ONE}/entities", json=ENTITY | {"id": "http://e.org/a b"}).status_code == 201
        changed = client.patch(f"{ONE}/entities/http%3A%2F%2Fe.org%2Fa%20b", json={"name": "else"})
        assert changed.json()["entity"] == "http://e.org/a b"
        assert client.request("DELETE", f"{ONE}/entities/http://e.org/a%20b").status_code == 200
        route = 'method="PATCH",route="/v1/bundles/{bundle}/entities/{entity}"'
        assert f'pmd_http_requests_total{{{route},status="200"}} 1.0' in client.get("/metrics").text


def test_who_may_change(folder, tiny_scorer):
    keys = {"api_key": b"may-ask", "admin_key": b"may-change"}
    with client_of(create_app({"tiny": tiny_scorer}, **keys)) as client:
        for key, asked, status in ((None, 401, 401), ("may-ask", 200, 403), ("may-chang", 401, 401)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert client.post(f"{ONE}/tails", json=QUESTION, headers=headers).status_code == asked
            assert client.post(f"{ONE}/entities", json=ENTITY, headers=headers).status_code == status
            assert client.request("DELETE", f"{ONE}/entities/pain", headers=headers).status_code == status
        assert client.post(f"{ONE}/tails", json=QUESTION, headers=ADMIN).status_code == 200
        assert client.post(f"{ONE}/entities", json=ENTITY, headers=ADMIN).status_code == 201
        assert client.post(f"{ONE}/reload", headers=ADMIN).status_code == 404  # nothing to open it with
        document = client.get("/openapi.json", headers=ADMIN).json()
        assert document["paths"]["/v1/bundles/{bundle}/entities"]["post"]["security"] == [{"admin": []}]
        assert {"key", "admin"} == set(document["components"]["securitySchemes"])
    with client_of(create_app({"tiny": tiny_scorer}, admin_key=b"may-change")) as client:
        assert client.post(f"{ONE}/tails", json=QUESTION).status_code == 200
        assert client.request("DELETE", f"{ONE}/entities/fever").status_code == 401
    with client_of(create_app({"tiny": tiny_scorer}, api_key=b"may-ask", reopen=Bundle.open)) as client:
        headers = {"Authorization": "Bearer may-ask"}
        for path in ("reload", "entities/pain"):
            assert client.post(f"{ONE}/{path}", headers=headers).status_code == 404
        assert client.post(f"{ONE}/entities", json=ENTITY, headers=headers).status_code == 405
        assert "NewEntity" not in client.get("/openapi.json", headers=headers).text


def test_openapi_has_the_changes(folder):
    with Bundle(folder).client() as client:
        document = client.get("/openapi.json").json()
        shapes = document["components"]["schemas"]
        assert set(find_references(document)) <= {f"#/components/schemas/{name}" for name in shapes}
        paths = {path: set(found) & {"post", "patch", "delete"} for path, found in document["paths"].items()}
        assert paths["/v1/bundles/{bundle}/entities/{entity}"] == {"patch", "delete"}
        assert paths["/v1/bundles/{bundle}/reload"] == paths["/v1/bundles/{bundle}/entities"] == {"post"}
        assert document["paths"]["/v1/bundles/{bundle}/entities"]["parameters"][0]["name"] == "bundle"


def test_a_reload_serves_what_lies_there_now(folder, tmp_path):
    bundle = Bundle(folder)
    with bundle.client() as client:
        client.post(f"{ONE}/entities", json=ENTITY)
        assert names(client, "napro") == [("naproxen", "naproxen")]
        again = client.post(f"{ONE}/reload")
        assert again.status_code == 200 and again.json()["entities"] == len(ENTITIES)  # no journal kept the change
        assert names(client, "napro") == []
        changed = Scorer.load(folder, threads=1)
        changed.remove_entity("insulin")
        changed.save(folder, replace=True)
        assert client.post(f"{ONE}/reload").json()["entities"] == len(ENTITIES) - 1
        assert client.post(f"{ONE}/tails", json=QUESTION | {"head": "insulin"}).status_code == 422
        assert client.post(f"{ONE}/tails", json=QUESTION).json() == plain(changed.top_tails(*QUESTION.values()))
    assert len(bundle.opened) == 3


def test_what_cannot_be_opened_leaves_the_old_one(folder, caplog):
    bundle = Bundle(folder)
    with bundle.client() as client:
        client.post(f"{ONE}/entities", json=ENTITY)
        (folder / "entities.tsv").write_bytes(b"cut")
        status, code, message = error(client.post(f"{ONE}/reload"))
        assert (status, code) == (409, "reload_failed") and "entities.tsv has 3 bytes" in message
        assert str(folder) not in message and any(str(folder) in record.getMessage() for record in caplog.records)
        assert about(client)["entities"] == len(ENTITIES) + 1
        assert client.post(f"{ONE}/tails", json=QUESTION | {"head": "naproxen"}).status_code == 200
        shutil.rmtree(folder)
        assert error(client.post(f"{ONE}/reload"))[0] == 409
        assert client.request("DELETE", f"{ONE}/entities/naproxen").status_code == 200
        assert 'pmd_reloads_total{bundle="tiny",result="failed"} 2.0' in client.get("/metrics").text


def test_a_reload_goes_on_with_the_journal(folder, tmp_path):
    journal = tmp_path / "kept" / "tiny.journal"
    bundle = Bundle(folder, journal)
    with bundle.client() as client:
        assert client.post(f"{ONE}/entities", json=ENTITY).json()["kept"] is True
        for _ in range(2):
            assert client.post(f"{ONE}/reload").json()["entities"] == len(ENTITIES) + 1
        assert client.request("DELETE", f"{ONE}/entities/pain").json()["changes"]["removed"] == 1
        other = write_tiny_bundle(tmp_path / "other", precision="int8")
        shutil.rmtree(folder)
        other.rename(folder)
        refused = error(client.post(f"{ONE}/reload"))
        assert refused[:2] == (409, "reload_failed") and "the journal holds changes to another bundle" in refused[2]
        after = ENTITY | {"id": "after"}
        assert error(client.post(f"{ONE}/entities", json=after))[:2] == (409, "bundle_changed")  # another's tower
        assert client.post(f"{ONE}/entities", json=after | {"vector": [1] * WIDTH}).json()["kept"] is True
        journal.rename(tmp_path / "moved")  # an operator who means it
        assert client.post(f"{ONE}/reload").json()["entities"] == len(ENTITIES)
        assert client.post(f"{ONE}/entities", json=ENTITY).json()["kept"] is True
    bundle.opened[-1].close()
    with Scorer.load(folder, threads=1, journal=journal) as scorer:
        assert scorer.find_entity("naproxen") and scorer.find_entity("pain")


def test_a_change_that_cannot_be_kept_is_not_made(folder, tmp_path):
    bundle = Bundle(folder, tmp_path / "tiny.journal")
    with bundle.client() as client:
        bundle.opened[0].journal.close()
        refused = client.post(f"{ONE}/entities", json=ENTITY)
        status, code, message = error(refused)
        assert (status, code) == (503, "not_kept") and "the journal was closed" in message
        assert str(tmp_path) not in message and refused.headers["Retry-After"] == "60"
        assert about(client)["entities"] == len(ENTITIES)
        assert error(client.post(f"{ONE}/reload"))[0] == 409


def test_answers_that_run_are_those_of_the_bundle_they_began_with(folder, tiny_scorer):
    bundle = Bundle(folder)
    gated = GatedScorer(bundle.opened[0])
    bundle.app = create_app({"tiny": gated}, admin_key=b"may-change", reopen=bundle.open)
    with bundle.client() as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, f"{ONE}/tails", json=QUESTION)
        assert gated.entered.acquire(timeout=PATIENCE)
        assert client.post(f"{ONE}/reload").status_code == 200  # beside it, not after it
        assert client.request("DELETE", f"{ONE}/entities/pain").status_code == 200
        gated.gate.set()
        assert running.result().json() == plain(tiny_scorer.top_tails(*QUESTION.values()))
        after = client.post(f"{ONE}/tails", json=QUESTION | {"exclude_known": False}).json()["predictions"]
        assert "pain" not in {answer["entity"] for answer in after}


def test_changes_wait_for_each_other_not_questions_for_them(folder, monkeypatch):
    bundle, gate, entered = Bundle(folder), threading.Event(), threading.Semaphore(0)
    add_entity = bundle.opened[0].add_entity

    def slow(*args, **how):
        entered.release()
        assert gate.wait(PATIENCE)
        add_entity(*args, **how)

    monkeypatch.setattr(bundle.opened[0], "add_entity", slow)
    with bundle.client() as client, ThreadPoolExecutor(2) as pool:
        adding = pool.submit(client.post, f"{ONE}/entities", json=ENTITY)
        assert entered.acquire(timeout=PATIENCE)
        removing = pool.submit(client.request, "DELETE", f"{ONE}/entities/naproxen")
        assert client.post(f"{ONE}/tails", json=QUESTION).status_code == 200
        assert not adding.done() and not removing.done()
        gate.set()
        assert (adding.result().status_code, removing.result().status_code) == (201, 200)


def test_what_was_replaced_is_let_go_at_once(folder):
    """Not when cycles are collected: until then all that a bundle maps would stay, once for each reload."""
    bundle = Bundle(folder)
    gone = []
    gc.collect()
    gc.disable()
    try:
        with bundle.client() as client:
            for path, body in (
                ("tails", QUESTION | {"head": "asprin"}),
                ("explain", QUESTION | {"tail": "nobody"}),
                ("entities", ENTITY | {"id": "pain"}),
                ("entities", ENTITY),
                ("tails", QUESTION),
            ):
                client.post(f"{ONE}/{path}", json=body)
                names(client, "a")
                client.request("DELETE", f"{ONE}/entities/nobody")
                gone.append(weakref.ref(bundle.opened.pop()))
                manifest = (folder / "manifest.json").rename(folder / "away")
                assert client.post(f"{ONE}/reload").status_code == 409
                manifest.rename(folder / "manifest.json")
                assert client.post(f"{ONE}/reload").status_code == 200
            last = time.monotonic() + PATIENCE
            while any(scorer() is not None for scorer in gone):  # a thread may still be leaving its last call
                assert time.monotonic() < last
                client.get("/health")
    finally:
        gc.enable()


def test_completions_follow_changes(tiny_scorer):
    def whole(state):
        rows = state.compacted.rows
        return Completion([row[0] for row in rows], [row[1] for row in rows])

    live = LiveCompletion(tiny_scorer.snapshot)
    changes = (
        lambda: tiny_scorer.add_entity("cold_chain", name="cold", description=""),
        lambda: tiny_scorer.update_entity("aspirin", name="Acid"),
        lambda: tiny_scorer.remove_entity("cold_chain"),
        lambda: tiny_scorer.add_entity("cold_chain", name="chain", description=""),
        lambda: tiny_scorer.remove_entity("heart"),
        lambda: tiny_scorer.update_entity("cold_weather", name="Cold"),
    )
    for change in changes:
        change()
        live = LiveCompletion(tiny_scorer.snapshot, live)
        fresh = whole(tiny_scorer.snapshot)
        for query in ("", "a", "cold", "acid", "heart", "chain", "cold_", "zz", "in"):
            for limit in (1, 3, 50):
                assert live.find(query, limit) == fresh.find(query, limit), query
