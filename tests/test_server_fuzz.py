"""Thousands of requests made up from the server's own OpenAPI document: none fails, all is as documented."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_http import running
from tiny_bundle import ENTITIES, RELATIONS

from pmd.serving.server.app import create_app
from pmd.serving.server.limits import Limits

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)

LEAST_CASES, CASES_PER_OPERATION = 2000, 300
ENTITY = st.sampled_from([row.id for row in ENTITIES] + ["heart attack", "cold", "nobody"])
RELATION = st.sampled_from([row.id for row in RELATIONS] + ["part of", "nothing"])


@pytest.mark.slow
def test_no_request_makes_the_server_fail(tiny_scorer, capsys):
    """Right and wrong requests alike: no 5xx, and statuses, types and shapes are those that the document states."""
    app = create_app({"tiny": tiny_scorer}, limits=Limits(max_batch=8, max_k=50, max_text_characters=200))
    statuses: dict[str, Counter[int]] = {}
    with running(app) as url:
        schemathesis.checks.load_all_checks()
        checks = [schemathesis.checks.CHECKS.get_one(name) for name in CHECKS]
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for operation in (result.ok() for result in schema.get_all_operations()):
            counts = statuses.setdefault(operation.label, Counter())
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                if mode.is_negative and not can_be_wrong(operation):
                    continue
                ask_many(operation, mode, counts, checks)
    cases = sum(sum(counts.values()) for counts in statuses.values())
    with capsys.disabled():
        print(f"\n{cases} cases:", {label: dict(counts) for label, counts in statuses.items()})  # noqa: T201
    assert cases >= LEAST_CASES
    assert not [status for counts in statuses.values() for status in counts if status >= 500]
    for name in ("tails", "heads", "score", "explain"):
        assert {200, 422} <= set(statuses[f"POST /v1/bundles/{{bundle}}/{name}"])


def can_be_wrong(operation) -> bool:
    return bool(operation.body or operation.query)


def ask_many(operation, mode, counts, checks) -> None:
    """Make up requests and check their answers; where they are right, half of them name what the bundle holds."""

    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    @settings(
        max_examples=CASES_PER_OPERATION, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    def ask(case, data) -> None:
        if mode.is_positive and isinstance(case.body, dict) and data.draw(st.booleans()):
            with_names(case.body, data)
        answer = case.call()
        counts[answer.status_code] += 1
        case.validate_response(answer, checks=checks)

    ask()


def with_names(body, data) -> None:
    for field in ("head", "tail"):
        if field in body:
            body[field] = data.draw(ENTITY)
    if "relation" in body:
        body["relation"] = data.draw(RELATION)
    if isinstance(body.get("among"), list):
        body["among"] = data.draw(st.lists(ENTITY, min_size=1))
    if isinstance(body.get("triples"), list):
        body["triples"] = data.draw(st.lists(st.tuples(ENTITY, RELATION, ENTITY).map(list), min_size=1, max_size=8))
