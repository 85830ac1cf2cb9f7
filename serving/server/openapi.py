"""The OpenAPI 3.1 document of a server, with its bundles and limits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pmd.serving.server import shapes
from pmd.serving.server.limits import MAX_COMPLETION_CHARACTERS, MAX_COMPLETIONS, Limits
from pmd.serving.server.schemas import ChangeModels, Models

JSON = "application/json"
KEY, KEY_SCHEME = "key", {"type": "http", "scheme": "bearer", "description": "The server's API key."}
ADMIN, ADMIN_SCHEME = "admin", {"type": "http", "scheme": "bearer", "description": "The server's admin key."}
WRONG = {
    400: "The body is not JSON, or not an object.",
    401: "The key is missing or wrong.",
    403: "The key may ask, not change.",
    404: "No bundle, or no entity, has this name.",
    405: "The address is asked with another method.",
    408: "The body did not arrive in time.",
    409: "There is such an entity already; or the bundle did not load, and is served as it was.",
    411: "The body comes without a Content-Length.",
    413: "The body is larger than {max_body_bytes} bytes.",
    415: "The body is not declared as application/json.",
    422: "The question cannot be answered: unknown names, with the nearest ones, or values out of limits.",
    429: "{max_waiting} requests wait already.",
    500: "The server failed; the message has an id of its log.",
    503: "The server is starting or stopping, or has too many connections; or the change could not be kept.",
    504: "No answer within {timeout_seconds:g} s.",
}
RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
QUESTION_ERRORS = (400, 401, 404, 405, 408, 411, 413, 415, 422, 429, 500, 503, 504)
CHANGE_ERRORS = (400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 422, 429, 500, 503, 504)
BARE_CHANGE_ERRORS = (401, 403, 404, 405, 409, 422, 429, 500, 503, 504)
READ_ERRORS = (401, 405, 500, 503)
ANSWERS: tuple[type[BaseModel], ...] = (
    shapes.Answer, shapes.Answers, shapes.Scores, shapes.Explained, shapes.Bundles, shapes.Relations,
    shapes.Entities, shapes.Health, shapes.Error,
)  # fmt: skip


def openapi_document(
    bundles: Sequence[str],
    limits: Limits,
    models: Models,
    *,
    changes: ChangeModels | None = None,
    reloads: bool = False,
    needs_key: bool,
) -> dict[str, Any]:
    """The document, JSON-ready. bundles: the names that stand in addresses.

    changes: the models of changes, where they are possible. reloads: whether bundles can be opened afresh.
    """
    shown: list[type[BaseModel]] = [*models, *ANSWERS]
    if changes is not None:
        shown += [*changes, shapes.Changed]
    pairs: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in shown]
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
    if changes is not None:
        components.setdefault("securitySchemes", {})[ADMIN] = ADMIN_SCHEME
        for path, operations in _change_paths(bundles, limits, reloads=reloads).items():
            document["paths"].setdefault(path, {}).update(operations)
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
    bundle = _in_path("bundle", "Name of the bundle.", enum=list(bundles))
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


def _change_paths(bundles: Sequence[str], limits: Limits, *, reloads: bool) -> dict[str, Any]:
    bundle = _in_path("bundle", "Name of the bundle.", enum=list(bundles))
    entity = _in_path("entity", "Id of the entity, or its name if only one has it.", minLength=1)

    def operation(name: str, summary: str, good: dict[str, Any], model: str | None = None) -> dict[str, Any]:
        errors = BARE_CHANGE_ERRORS if model is None else CHANGE_ERRORS
        found: dict[str, Any] = {"operationId": name, "summary": summary, "security": [{ADMIN: []}]}
        if model is not None:
            found["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(model)}}}
        return found | {"responses": good | _errors(errors, limits)}

    changed = _good("Changed", "The change is made.")
    one = "/v1/bundles/{bundle}"
    paths: dict[str, Any] = {
        f"{one}/entities": {"post": operation("add", "Put an entity in", {"201": changed}, "NewEntity")},
        f"{one}/entities/{{entity}}": {
            "parameters": [bundle, entity],
            "patch": operation("update", "Change an entity", {"200": changed}, "ChangedEntity"),
            "delete": operation("remove", "Take an entity out, with its known triples", {"200": changed}),
        },
    }
    if reloads:
        good = {"200": _good("Bundle", "The bundle as it was opened.")}
        reload = operation("reload", "Open the bundle afresh from where it lies", good)
        paths[f"{one}/reload"] = {"parameters": [bundle], "post": reload}
    return paths


def _in_path(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", **schema},
    }


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
