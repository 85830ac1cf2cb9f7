"""The OpenAPI 3.1 document of a server, with its bundles and limits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pmd.serving.server import shapes
from pmd.serving.server.limits import MAX_COMPLETION_CHARACTERS, MAX_COMPLETIONS, Limits
from pmd.serving.server.schemas import Models

JSON = "application/json"
KEY, KEY_SCHEME = "key", {"type": "http", "scheme": "bearer", "description": "The server's API key."}
WRONG = {
    400: "The body is not JSON, or not an object.",
    401: "The key is missing or wrong.",
    404: "No bundle has this name.",
    405: "The address is asked with another method.",
    408: "The body did not arrive in time.",
    413: "The body is larger than {max_body_bytes} bytes.",
    415: "The body is not declared as application/json.",
    422: "The question cannot be answered: unknown names, with the nearest ones, or values out of limits.",
    429: "{max_waiting} requests wait already.",
    500: "The server failed; the message has an id of its log.",
    503: "The server is starting or stopping.",
    504: "No answer within {timeout_seconds:g} s.",
}
RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
QUESTION_ERRORS = (400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)
READ_ERRORS = (401, 405, 500, 503)
ANSWERS: tuple[type[BaseModel], ...] = (
    shapes.Answer, shapes.Answers, shapes.Scores, shapes.Explained, shapes.Bundles, shapes.Relations,
    shapes.Entities, shapes.Health, shapes.Error,
)  # fmt: skip


def openapi_document(bundles: Sequence[str], limits: Limits, models: Models, *, needs_key: bool) -> dict[str, Any]:
    """The document, JSON-ready. bundles: the names that stand in addresses."""
    pairs: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in (*models, *ANSWERS)]
    _, definitions = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
    components: dict[str, Any] = {"schemas": definitions["$defs"]}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "pmd-serve",
            "version": _version(),
            "summary": "Ranked answers to link-prediction questions",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _process_paths(limits) | _bundle_paths(bundles, limits),
        "components": components,
    }
    if needs_key:
        components["securitySchemes"] = {KEY: KEY_SCHEME}
        document["security"] = [{KEY: []}]
    return document


def _process_paths(limits: Limits) -> dict[str, Any]:
    def get(summary: str, good: dict[str, Any], errors: Sequence[int], **more: Any) -> dict[str, Any]:
        return {"get": {"summary": summary, "responses": {"200": good} | _errors(errors, limits)} | more}

    text = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    health = _good("Health", "It is so.")
    return {
        "/health": get("Whether the process lives", health, (405, 500), operationId="health", security=[]),
        "/ready": get("Whether questions are answered", health, (405, 500, 503), operationId="ready", security=[]),
        "/metrics": get("Counts for Prometheus", text, READ_ERRORS, operationId="metrics"),
        "/v1/bundles": get("All bundles", _good("Bundles", "The bundles."), READ_ERRORS, operationId="bundles"),
    }


def _bundle_paths(bundles: Sequence[str], limits: Limits) -> dict[str, Any]:
    bundle = {
        "name": "bundle",
        "in": "path",
        "required": True,
        "description": "Name of the bundle.",
        "schema": {"type": "string", "enum": list(bundles)},
    }
    top = {"description": "Answer to one question; Answers to a list.", "content": {JSON: {"schema": _either()}}}
    questions = {
        "tails": ("Best tails of (head, relation, ?)", "TailsQuestion", top),
        "heads": ("Best heads of (?, relation, tail)", "HeadsQuestion", top),
        "score": ("Scores of triples", "ScoreQuestion", _good("Scores", "A score for each triple.")),
        "explain": ("What drove an answer", "ExplainQuestion", _good("Explained", "The explanation.")),
    }
    paths: dict[str, Any] = {}
    for name, (summary, model, good) in questions.items():
        operation = {
            "operationId": name,
            "summary": summary,
            "requestBody": {
                "required": True,
                "content": {JSON: {"schema": _ref(model), "example": EXAMPLES[name]}},
            },
            "responses": {"200": good} | _errors(QUESTION_ERRORS, limits),
        }
        paths[f"/v1/bundles/{{bundle}}/{name}"] = {"parameters": [bundle], "post": operation}
    relations = {
        "operationId": "relations",
        "summary": "All relations",
        "responses": {"200": _good("Relations", "The relations.")} | _errors((401, 404, 405, 500, 503), limits),
    }
    entities = {
        "operationId": "entities",
        "summary": "Entities whose id or name begins with a text, then those that hold it",
        "parameters": COMPLETION_PARAMETERS,
        "responses": {"200": _good("Entities", "At most `limit`.")}
        | _errors((401, 404, 405, 422, 500, 503), limits),
    }
    paths["/v1/bundles/{bundle}/relations"] = {"parameters": [bundle], "get": relations}
    paths["/v1/bundles/{bundle}/entities"] = {"parameters": [bundle], "get": entities}
    return paths


COMPLETION_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "query",
        "in": "query",
        "description": "What was typed.",
        "schema": {"type": "string", "maxLength": MAX_COMPLETION_CHARACTERS, "default": ""},
        "example": "acq",
    },
    {
        "name": "limit",
        "in": "query",
        "description": "How many, at most.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_COMPLETIONS, "default": 20},
    },
]
EXAMPLES: dict[str, dict[str, Any]] = {
    "tails": {"head": "acquired_abnormality", "relation": "affects", "k": 10},
    "heads": {"relation": "affects", "tail": ["physiologic_function", "organism_function"], "k": 3},
    "score": {"triples": [["acquired_abnormality", "affects", "physiologic_function"]]},
    "explain": {"head": "acquired_abnormality", "relation": "affects", "tail": "physiologic_function"},
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _either() -> dict[str, Any]:
    return {"oneOf": [_ref("Answer"), _ref("Answers")]}


def _good(model: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": _ref(model)}}}


def _errors(statuses: Sequence[int], limits: Limits) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status in statuses:
        answers[str(status)] = _good("Error", WRONG[status].format(**vars(limits)))
        if status in (429, 503):
            answers[str(status)]["headers"] = RETRY
    return answers


def _version() -> str:
    try:
        return version("pmd-kgc")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"
