"""Slow, silent and too many clients: each is cut off in time, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from serving_http import PATIENCE, running
from test_server import ONE, QUESTION, plain
from tiny_bundle import ENTITIES

from pmd.serving.server import connections
from pmd.serving.server.app import create_app
from pmd.serving.server.connections import room_for
from pmd.serving.server.limits import Limits

SHORT = Limits(header_seconds=0.3, timeout_seconds=0.3, max_connections=4)
BODY = json.dumps(QUESTION).encode()
HEAD = f"POST {ONE}/tails HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n".encode()
WHOLE = HEAD + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY


@pytest.fixture
def server(tiny_scorer, monkeypatch):
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    app = create_app({"tiny": tiny_scorer}, limits=SHORT)
    with running(app, SHORT) as url:
        yield url, app.state.handlers.metrics


@contextlib.contextmanager
def client_at(url: str, *sent: bytes) -> Iterator[socket.socket]:
    """A connection on which some bytes were sent."""
    parts = httpx.URL(url)
    with socket.create_connection((parts.host, parts.port), PATIENCE) as client:
        for part in sent:
            client.sendall(part)
        yield client


def rest_of(client: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    found = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := client.recv(65_536):
            found += part
    return found


def cuts(metrics, why: str) -> int:
    return int(metrics.cut.labels(why)._value.get())


def test_half_a_header_gets_408_and_silence_nothing(server):
    url, metrics = server
    with client_at(url, HEAD[:30]) as half, client_at(url) as silent:
        answer = rest_of(half)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b'"code":"slow_header"' in answer
        assert b"connection: close" in answer.lower() and b"nosniff" in answer
        assert rest_of(silent) == b""
    assert (cuts(metrics, "slow_header"), cuts(metrics, "idle")) == (1, 1)


def test_byte_by_byte_wins_no_time(server):
    url, metrics = server
    with client_at(url) as client:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in HEAD * 100:
                client.sendall(bytes([byte]))
                time.sleep(0.01)
        assert time.monotonic() - started < PATIENCE / 4
    assert cuts(metrics, "slow_header") == 1


def test_the_second_request_of_a_connection_has_no_more_time(server):
    url, metrics = server
    with client_at(url, WHOLE) as client:
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        client.sendall(HEAD[:30])
        assert b" 408 " in rest_of(client)
    assert cuts(metrics, "slow_header") == 1


def test_a_body_that_goes_on_after_its_answer_is_cut_off(server):
    url, metrics = server
    head = HEAD + b"Content-Length: 1000\r\n\r\n"
    with client_at(url, head, BODY) as client:  # half of it, then byte by byte
        assert client.recv(12) == b"HTTP/1.1 408"
        with contextlib.suppress(ConnectionError):
            for _ in range(900):
                client.sendall(b" ")
                time.sleep(0.01)
        rest_of(client)
    assert cuts(metrics, "slow_body") == 1


def test_chunks_are_refused_and_not_read_on(server):
    url, _ = server
    with client_at(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as client:
        answer = rest_of(client)
        assert answer.startswith(b"HTTP/1.1 411 Length Required\r\n") and b'"code":"length_required"' in answer


def test_an_answer_that_nobody_takes_is_dropped(server, monkeypatch):
    monkeypatch.setattr(connections, "SLOWEST_BYTES_PER_SECOND", 10**9)
    url, metrics = server
    many = json.dumps({"head": [row.id for row in ENTITIES] * 5, "relation": "treats"}).encode()
    asked = HEAD + f"Content-Length: {len(many)}\r\n\r\n".encode() + many
    with client_at(url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        last = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionError, TimeoutError):
            client.settimeout(0.2)
            for _ in range(2000):
                client.sendall(asked)
        while not cuts(metrics, "slow_reader"):
            assert time.monotonic() < last
            time.sleep(0.02)
    assert httpx.get(f"{url}/health").status_code == 200


def test_what_is_no_http_gets_a_400_of_ours(server, caplog):
    url, _ = server
    for wrong in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"x" * 70_000):
        with client_at(url, wrong) as client:
            answer = rest_of(client)
            assert answer == b"" or (answer[9:12] == b"400" and b'"code":"malformed_request"' in answer)
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    with client_at(url, head + b"nonsense\r\n") as client:
        rest_of(client)
    assert httpx.get(f"{url}/health").status_code == 200
    assert not caplog.records


def test_new_clients_take_the_place_of_silent_ones(server, tiny_scorer):
    url, metrics = server
    with contextlib.ExitStack() as stack, httpx.Client(base_url=url) as kept:
        assert kept.get("/health").status_code == 200
        silent = [stack.enter_context(client_at(url, *sent)) for sent in ((), (HEAD[:9],), (HEAD,))]
        with client_at(url, WHOLE) as fifth:
            assert fifth.recv(15) == b"HTTP/1.1 200 OK"
        assert rest_of(silent[0]) == b""
        assert cuts(metrics, "made_room") == 1
        assert kept.post(f"{ONE}/tails", json=QUESTION).json() == plain(tiny_scorer.top_tails(*QUESTION.values()))
        assert "pmd_connections" in kept.get("/metrics").text


def test_room_for_connections(monkeypatch):
    limit, said = [256, 1024], []
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limit))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limit.__setitem__(slice(None), new))
    assert room_for(100, 50, said.append) == 100 and limit == [256, 1024]
    assert room_for(500, 50, said.append) == 500 and limit == [550, 1024] and not said
    assert room_for(1000, 50, said.append) == 974 and limit == [1024, 1024] and "974 connections" in said[0]
    limit[:] = [256, resource.RLIM_INFINITY]
    assert room_for(5000, 50, said.append) == 5000 and limit[0] == 5050
    assert room_for(1, 9000, said.append) == 1
