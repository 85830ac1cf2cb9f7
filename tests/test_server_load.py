"""The load of the benchmarks, put on a real server."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from serving_http import running
from tiny_bundle import ENTITIES

from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.http_load import measure
from pmd.serving.server.app import create_app

BODIES = [json.dumps({"head": row.id, "relation": "treats"}).encode() for row in ENTITIES]


def test_what_is_measured_is_what_the_server_counted(tiny_scorer):
    app = create_app({"tiny": tiny_scorer}, api_key=b"a-key")
    with running(app) as url:
        address = f"{url}/v1/bundles/tiny/tails"
        found = measure(address, BODIES, 4, 0.3, warmup_seconds=0, api_key="a-key")
        wrong = measure(address, BODIES[:1], 2, 0.1, warmup_seconds=0.1)
    metrics = app.state.handlers.metrics
    answered = metrics.total("pmd_http_requests_total") - metrics.total("pmd_rejected_requests_total")
    assert answered - 4 <= found["requests"] <= answered  # each last answer may come too late
    assert found["statuses"] == {"200": found["requests"]} and set(wrong["statuses"]) == {"401"}
    assert found["requests_per_second"] == pytest.approx(found["requests"] / 0.3)
    assert 0 < found["ms"]["p50"] <= found["ms"]["p95"] <= found["ms"]["p99"] <= found["ms"]["max"]
    assert (found["clients"], found["seconds"]) == (4, 0.3)


def test_no_server_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(BenchError, match="did not answer"):
        measure(f"http://127.0.0.1:{port}/", BODIES, 2, 0.1)
    with pytest.raises(BenchError, match="http:// addresses"):
        measure("https://127.0.0.1/", BODIES, 2, 0.1)


def test_a_server_that_hangs_up_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hanging_up = threading.Thread(target=lambda: listener.accept()[0].close())
        hanging_up.start()
        with pytest.raises(BenchError, match="did not answer"):
            measure(f"http://127.0.0.1:{listener.getsockname()[1]}/", BODIES, 1, 5)
        hanging_up.join()
