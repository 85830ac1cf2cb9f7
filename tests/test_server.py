"""What the server answers: the Scorer's answers, and an error of the right kind for every wrong request."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import httpx
import pytest
from serving_http import client_of
from tiny_bundle import ENTITIES, RELATIONS

from pmd.serving import Scorer
from pmd.serving.server.app import create_app
from pmd.serving.server.completion import Completion
from pmd.serving.server.limits import MAX_AMONG, Limits
from pmd.serving.server.shapes import Explained

LIMITS = Limits(max_body_bytes=20_000, max_batch=4, max_k=50, max_text_characters=500)
ONE = "/v1/bundles/tiny"
QUESTION = {"head": "aspirin", "relation": "treats"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", params=["fp32", "int8"])
def scorer(request, tiny_folder, tiny_int8_folder):
    return Scorer.load({"fp32": tiny_folder, "int8": tiny_int8_folder}[request.param], threads=1)


@pytest.fixture(scope="module")
def client(scorer):
    with client_of(create_app({"tiny": scorer, "other": scorer}, limits=LIMITS)) as client:
        yield client


def plain(predictions):
    """As JSON; float32 scores may differ in the last bit with what else is scored in the same call."""
    return {
        "predictions": [found._asdict() | {"score": pytest.approx(found.score, abs=2e-7)} for found in predictions]
    }


def error(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message of an error, which has nothing else in it."""
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"}
    assert "\n" not in body["error"]["message"] and "Traceback" not in answer.text
    return answer.status_code, body["error"]["code"], body["error"]["message"]


@pytest.mark.parametrize("how", [{}, {"k": 3}, {"exclude_known": False}, {"reranked": True}, {"k": 50}])
@pytest.mark.parametrize("relation", [row.id for row in RELATIONS])
def test_tails_and_heads_are_the_scorers(client, scorer, relation, how):
    for entity in ("aspirin", "cold_illness", "heart attack"):
        tails = client.post(f"{ONE}/tails", json={"head": entity, "relation": relation} | how)
        assert tails.json() == plain(scorer.top_tails(entity, relation, **how))
        heads = client.post(f"{ONE}/heads", json={"tail": entity, "relation": relation} | how)
        assert heads.json() == plain(scorer.top_heads(relation, entity, **how))


def test_lists_give_lists(client, scorer):
    heads, relations = ["aspirin", "heart", "fever"], ["treats", "part_of", "causes"]
    found = client.post(f"{ONE}/tails", json={"head": heads, "relation": relations, "k": 4}).json()
    expected = [scorer.top_tails(*pair, k=4) for pair in zip(heads, relations, strict=True)]
    assert found == {"answers": [plain(answer) for answer in expected]}
    found = client.post(f"{ONE}/heads", json={"tail": ["pain"], "relation": "treats"}).json()
    assert found == {"answers": [plain(scorer.top_heads("treats", "pain"))]}
    found = client.post(f"{ONE}/tails", json={"head": "aspirin", "relation": ["treats", "causes"]}).json()
    assert found == {"answers": [plain(scorer.top_tails("aspirin", name)) for name in ("treats", "causes")]}


def test_texts_and_candidates(client, scorer):
    text = "a drug against heart attack"
    found = client.post(f"{ONE}/tails", json={"head": text, "relation": "treats", "head_is_text": True}).json()
    assert found == plain(scorer.top_tails(text, "treats", head_is_text=True))
    found = client.post(f"{ONE}/heads", json={"tail": text, "relation": "treats", "tail_is_text": True}).json()
    assert found == plain(scorer.top_heads("treats", text, tail_is_text=True))
    among = ["body", "diabetes", "cold_weather"]
    found = client.post(f"{ONE}/tails", json=QUESTION | {"among": among}).json()
    assert found == plain(scorer.top_tails(*QUESTION.values(), among=among))
    assert {answer["entity"] for answer in found["predictions"]} == set(among)


def test_scores_and_explanations(client, scorer):
    triples = [["aspirin", "treats", "pain"], ["heart", "part_of", "body"]]
    assert client.post(f"{ONE}/score", json={"triples": triples}).json() == {
        "scores": pytest.approx([float(score) for score in scorer.score(triples)], abs=2e-7)
    }
    for asks in ("tail", "head"):
        asked = {"head": "aspirin", "relation": "treats", "tail": "heart_attack", "asks": asks, "triples": 2}
        found = client.post(f"{ONE}/explain", json=asked)
        Explained.model_validate(found.json())
        expected = scorer.explain("aspirin", "treats", "heart_attack", asks=asks, triples=2).as_dict()
        assert found.json() == {"explanation": json.loads(json.dumps(expected))}


def test_bundles_relations_and_entities(client, scorer):
    bundles = client.get("/v1/bundles").json()["bundles"]
    assert [bundle["name"] for bundle in bundles] == ["tiny", "other"]
    assert bundles[0]["entities"] == len(ENTITIES) and bundles[0]["reranks"] is True
    assert bundles[0]["metrics"]["test"]["mrr"] == scorer.bundle.manifest["metrics"]["test"]["mrr"]
    relations = client.get(f"{ONE}/relations").json()
    assert relations == {"relations": [{"id": row.id, "text": row.text} for row in RELATIONS]}

    def names(**asked):
        return [entity["id"] for entity in client.get(f"{ONE}/entities", params=asked).json()["entities"]]

    assert names(query="HEART a") == ["heart_attack"]  # a name, whatever the case
    assert names(query="in") == ["insulin", "aspirin", "pain"]  # first those that begin so
    assert names(query="pan") == ["pancreas"]
    assert names(query="pr") == ["ibuprofen"]  # inside
    assert names(query=" A ", limit=3) == names(query="a")[:3] != names(query="a")[:2]
    assert names(query="cold") == ["cold_illness", "cold_weather"]
    assert names(query="") == [row.id for row in ENTITIES] and names(limit=2) == ["aspirin", "ibuprofen"]
    assert names(query="zzz") == []


def test_whole_names_come_first_whatever_stands_before_them():
    completion = Completion(["b", "a", "dogma", "c"], ["dog house", "Dog", "a belief", "hot\tdog"])
    assert completion.find("dog", 9) == [("a", "Dog"), ("dogma", "a belief"), ("b", "dog house"), ("c", "hot\tdog")]
    assert completion.find("hot dog", 9) == [("c", "hot\tdog")]  # white space is white space
    assert completion.find("c", 1) == [("c", "hot\tdog")]
    assert Completion([], []).find("", 9) == Completion([], []).find("a", 9) == []


WRONG_BODIES = {
    "nothing": (b"", 400),
    "half": (b'{"head": "asp', 400),
    "a list": (b"[1, 2]", 400),
    "null": (b"null", 400),
    "NaN": (b'{"head": "aspirin", "relation": "treats", "k": NaN}', 400),
    "infinity": (b'{"head": "aspirin", "relation": "treats", "k": -Infinity}', 400),
    "half a character": (b'{"head": "\\ud800", "relation": "treats"}', 400),
    "not UTF-8": (b'{"head": "\xff\xfe", "relation": "treats"}', 400),
    "deep": (b'{"head": ' + b"[" * 9000 + b"]" * 9000 + b"}", 400),
    "a long number": (b'{"head": "aspirin", "relation": "treats", "k": ' + b"9" * 4000 + b"}", 422),
    "a longer number": (b'{"head": "aspirin", "relation": "treats", "k": ' + b"9" * 9000 + b"}", 400),
    "1e400": (b'{"head": "aspirin", "relation": "treats", "k": 1e400}', 422),
}


@pytest.mark.parametrize("name", WRONG_BODIES)
def test_bodies_that_are_no_json_object(client, name):
    body, expected = WRONG_BODIES[name]
    status, code, _ = error(client.post(f"{ONE}/tails", content=body, headers=JSON))
    assert (status, code) == (expected, "malformed_json" if expected == 400 else "unusable_question")


UNUSABLE = {
    "unknown field": (QUESTION | {"hed": 1}, "unknown field 'hed'; expected relation, k,"),
    "missing": ({"head": "aspirin"}, "field 'relation' is missing"),
    "a number": (QUESTION | {"head": 5}, "head: input should be a valid string, found 5"),
    "text for a number": (QUESTION | {"k": "5"}, "k: input should be a valid integer, found '5'"),
    "truth for a number": (QUESTION | {"k": True}, "k: "),
    "number for a truth": (QUESTION | {"exclude_known": 1}, "exclude_known: "),
    "k 0": (QUESTION | {"k": 0}, "k: input should be greater than or equal to 1, found 0"),
    "k above": (QUESTION | {"k": 51}, "k: input should be less than or equal to 50, found 51"),
    "empty": (QUESTION | {"head": ""}, "head: "),
    "blank text": (QUESTION | {"head": " \t", "head_is_text": True}, "the text of an entity is empty"),
    "long": (QUESTION | {"head": "x" * 501}, "head: string should have at most 500 characters"),
    "many": (QUESTION | {"head": ["aspirin"] * 5}, "head: list should have at most 4 items"),
    "none": (QUESTION | {"head": []}, "head: list should have at least 1 item"),
    "list of numbers": (QUESTION | {"head": ["aspirin", 7]}, "head.1: input should be a valid string, found 7"),
    "two lengths": ({"head": ["aspirin"] * 2, "relation": ["treats"] * 3}, "2 entities and 3 relations"),
    "unknown entity": (QUESTION | {"head": "asprin"}, "'asprin'; nearest: aspirin"),
    "two of a name": (QUESTION | {"head": "cold"}, "2 entities are named 'cold'; give an id: cold_illness, cold"),
    "unknown in a list": (QUESTION | {"head": ["fever", "asprin"]}, "question 1: no entity"),
    "unknown relation": (QUESTION | {"relation": "treat"}, "'treat'; nearest: treats"),
    "relation in a list": ({"head": "fever", "relation": ["treats", "treat"]}, "question 1: no relation"),
    "unknown candidate": (QUESTION | {"among": ["body", "bodi"]}, "'bodi'"),
    "NUL": (QUESTION | {"head": "\0"}, "no entity has the id or name '\\x00'"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_questions_that_cannot_be_answered(client, name):
    body, message = UNUSABLE[name]
    status, code, found = error(client.post(f"{ONE}/tails", json=body))
    assert (status, code) == (422, "unusable_question") and message in found
    assert client.post(f"{ONE}/tails", json=QUESTION).status_code == 200


def test_other_wrong_questions(client):
    assert "heads" not in error(client.post(f"{ONE}/heads", json=QUESTION))[2]
    for path, body in {
        "score": {"triples": [["aspirin", "treats"]]},
        "explain": {"head": "aspirin", "relation": "treats", "tail": "nobody at all"},
    }.items():
        assert error(client.post(f"{ONE}/{path}", json=body))[0] == 422
    assert error(client.post(f"{ONE}/score", json={"triples": [["aspirin", "treats", "pane"]]}))[2].startswith(
        "no ent"
    )
    assert error(client.post(f"{ONE}/tails", json=QUESTION | {"among": ["body"] * (MAX_AMONG + 1)}))[0] in (
        413,
        422,
    )
    for query in ("limit=0", "limit=101", "limit=x", "limit=²", "limit=" + "9" * 5000, "query=" + "x" * 201, "a=1"):
        assert error(client.get(f"{ONE}/entities?{query}"))[:2] == (422, "unusable_question"), query[:20]


def test_addresses_methods_and_types(client):
    assert error(client.get("/nothing"))[:2] == (404, "not_found")
    assert error(client.get(f"{ONE}/"))[0] == 404
    assert error(client.get("/static/..%2fapp.py"))[0] == 404
    assert error(client.get("/static/secret"))[:2] == (404, "not_found")
    status, code, message = error(client.post("/v1/bundles/none/tails", json=QUESTION))
    assert (status, code) == (404, "unknown_bundle") and "tiny, other" in message
    assert error(client.get("/v1/bundles/%ff%00/relations"))[:2] == (404, "unknown_bundle")
    refused = client.get(f"{ONE}/tails")
    assert error(refused)[:2] == (405, "wrong_method") and refused.headers["Allow"] == "POST"
    assert error(client.request("DELETE", "/health"))[0] == 405
    body = json.dumps(QUESTION).encode()
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/jsonp"}):
        assert error(client.post(f"{ONE}/tails", content=body, headers=headers))[:2] == (415, "wrong_content_type")
    zipped = JSON | {"Content-Encoding": "gzip"}
    assert error(client.post(f"{ONE}/tails", content=body, headers=zipped))[0] == 415
    named = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(f"{ONE}/tails", content=body, headers=named).status_code == 200


def test_bodies_too_large(client):
    large = json.dumps(QUESTION | {"head": "x" * 20_000}).encode()
    assert error(client.post(f"{ONE}/tails", content=large, headers=JSON))[:2] == (413, "body_too_large")

    in_chunks = client.post(f"{ONE}/tails", content=iter([b"{}"]), headers=JSON)
    assert error(in_chunks)[:2] == (411, "length_required")
    just = json.dumps(QUESTION).encode().ljust(20_000)
    assert client.post(f"{ONE}/tails", content=just, headers=JSON).status_code == 200


def test_headers_keep_browsers_in_their_place(client):
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self';" in policy
    for answer in (page, client.post(f"{ONE}/tails", json=QUESTION), client.get("/nothing")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert client.post(f"{ONE}/tails", json=QUESTION).headers["Cache-Control"] == "no-store"


def test_our_own_failure_is_500_with_an_id_of_the_log(tiny_scorer, caplog, monkeypatch):
    def broken(*args, **how):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(tiny_scorer, "top_tails", broken)
    with client_of(create_app({"tiny": tiny_scorer})) as client, caplog.at_level(logging.ERROR):
        answer = client.post(f"{ONE}/tails", json=QUESTION)
        status, code, message = error(answer)
        assert (status, code) == (500, "internal") and "secret" not in answer.text
        (record,) = [record for record in caplog.records if record.name == "pmd.serving.server.guard"]
        assert message.split()[-1] in record.getMessage() and "secret detail" in record.exc_text
        assert client.post(f"{ONE}/heads", json={"tail": "pain", "relation": "treats"}).status_code == 200


def test_clients_do_not_learn_where_a_bundle_lies(tiny_scorer, tiny_folder, monkeypatch):
    monkeypatch.setitem(tiny_scorer.bundle.manifest, "rerank", None)
    with client_of(create_app({"tiny": tiny_scorer})) as client:
        answer = client.post(f"{ONE}/tails", json=QUESTION | {"reranked": True})
        assert error(answer)[0] == 422 and "bundle tiny has no re-ranking" in answer.text
        assert str(tiny_folder) not in answer.text


def test_the_key(tiny_scorer):
    with client_of(create_app({"tiny": tiny_scorer}, api_key=b"right-key")) as client:
        for path in ("/", "/docs", "/health", "/ready", "/static/page.js", "/static/style.css"):
            assert client.get(path).status_code == 200
        closed = ("/v1/bundles", "/metrics", "/openapi.json", f"{ONE}/relations", "/nothing")
        for given in (
            None,
            "right-key",
            "Basic right-key",
            "Bearer",
            "Bearer wrong",
            "Bearer right-keyy",
            "Bearer \xff",
        ):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            for path in closed:
                refused = client.get(path, headers=headers)
                assert error(refused)[:2] == (401, "wrong_key"), (given, path)
                assert refused.headers["WWW-Authenticate"] == "Bearer"
            assert client.post(f"{ONE}/tails", json=QUESTION, headers=headers).status_code == 401
        right = {"Authorization": "Bearer right-key"}
        assert client.post(f"{ONE}/tails", json=QUESTION, headers=right).status_code == 200
        document = client.get("/openapi.json", headers=right).json()
        assert document["security"] and document["paths"]["/health"]["get"]["security"] == []


def test_ready_and_stopping(tiny_scorer):
    app = create_app({"tiny": tiny_scorer})
    handlers = app.state.handlers
    with client_of(app) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}
        handlers.started = False
        assert error(client.get("/ready"))[:2] == (503, "starting")
        handlers.started, handlers.stopping = True, True
        assert error(client.get("/ready"))[:2] == (503, "stopping")
        refused = client.post(f"{ONE}/tails", json=QUESTION)
        assert error(refused)[:2] == (503, "stopping") and refused.headers["Retry-After"] == "5"
        assert client.get("/health").status_code == 200


def test_metrics(tiny_scorer):
    with client_of(create_app({"tiny": tiny_scorer})) as client:
        client.post(f"{ONE}/tails", json=QUESTION | {"head": ["aspirin", "fever"]})
        client.post(f"{ONE}/tails", json=QUESTION | {"head": "asprin"})
        client.get("/nothing/" + "x" * 100)
        answer = client.get("/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain")
        lines = answer.text.splitlines()
        tails = 'route="/v1/bundles/{bundle}/tails"'
        assert f'pmd_http_requests_total{{method="POST",{tails},status="200"}} 1.0' in lines
        assert f'pmd_http_requests_total{{method="POST",{tails},status="422"}} 1.0' in lines
        assert f"pmd_http_request_seconds_count{{{tails}}} 2.0" in lines
        assert 'pmd_questions_total{bundle="tiny"} 3.0' in lines
        assert 'pmd_batch_questions_bucket{bundle="tiny",le="1.0"} 0.0' in lines
        assert 'pmd_batch_questions_bucket{bundle="tiny",le="2.0"} 1.0' in lines
        assert 'pmd_waiting_requests{bundle="tiny"} 0.0' in lines
        assert 'pmd_rejected_requests_total{code="unusable_question"} 1.0' in lines
        assert 'pmd_rejected_requests_total{code="not_found"} 1.0' in lines
        assert "nothing" not in answer.text and "x" * 20 not in answer.text  # labels do not grow with what is asked


def test_openapi_states_the_limits_and_every_error(client):
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    shapes = document["components"]["schemas"]
    assert shapes["TailsQuestion"]["properties"]["k"] | {"description": ""} == {
        "type": "integer", "minimum": 1, "maximum": 50, "default": 10, "title": "K", "description": "",
    }  # fmt: skip
    one, many = shapes["TailsQuestion"]["properties"]["head"]["oneOf"]
    assert (one["maxLength"], many["maxItems"], many["items"]["maxLength"]) == (500, 4, 500)
    assert shapes["TailsQuestion"]["additionalProperties"] is False
    tails = document["paths"]["/v1/bundles/{bundle}/tails"]
    assert tails["parameters"][0]["schema"]["enum"] == ["tiny", "other"]
    expected = {"200", "400", "401", "404", "405", "408", "411", "413", "415", "422", "429", "500", "503", "504"}
    assert set(tails["post"]["responses"]) == expected
    references = set(find_references(document))
    assert references <= {f"#/components/schemas/{name}" for name in shapes}
    served = {path.replace("{bundle}", "tiny") for path in document["paths"]}
    for path in served - {"/health", "/ready", "/metrics", "/v1/bundles"}:
        assert client.request("DELETE", path).status_code == 405


def find_references(value):
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "$ref":
                yield part
            else:
                yield from find_references(part)
    elif isinstance(value, list):
        for part in value:
            yield from find_references(part)


def test_the_edge_runtime_does_not_load_the_server():
    code = "import sys, pmd.serving, pmd.serving.server, pmd.serving.server.cli; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"starlette", "uvicorn", "pydantic", "prometheus_client", "asyncio"} & set(child.stdout.split())
