"""`pmd-serve` as a process: how it starts, is refused, stops, and is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from serving_http import PATIENCE, client_of
from test_server import QUESTION, plain

from pmd.serving import Scorer
from pmd.serving.archive import pack
from pmd.serving.server.app import create_app
from pmd.serving.server.cli import main
from pmd.serving.server.process import StoppingServer

COMMAND = [sys.executable, "-m", "pmd.serving.server.cli"]


@contextlib.contextmanager
def serving(
    *args: object, key: str | None = None, admin_key: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A `pmd-serve` on a free port: the process, its URL, and what it said before it listened."""
    keys = {"PMD_API_KEY": key, "PMD_ADMIN_KEY": admin_key}
    environment = {name: value for name, value in os.environ.items() if name not in keys}
    environment |= {name: value for name, value in keys.items() if value is not None}
    command = [*COMMAND, *map(str, args), *(() if "--port" in args else ("--port", "0"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    with process:
        try:
            said = []
            for line in process.stderr:
                said.append(line.rstrip("\n"))
                if line.startswith("listening on "):
                    break
            else:
                raise AssertionError(f"it did not listen: {said}")
            yield process, said[-1].removeprefix("listening on "), said[:-1]
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, dict, str]:
    """Exit code, the JSON object that ends stdout, and the rest of stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, json.loads(out.splitlines()[-1]), err


def _wait_until_refused(port: int) -> None:
    """Until nothing listens there; a connection that is cut while the port closes (a reset) is not yet that."""
    last = time.monotonic() + PATIENCE
    while time.monotonic() < last:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
    raise AssertionError("it went on taking connections")


def refused(*args: object) -> str:
    """The one line with which the command refuses to start."""
    done = subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_the_request_that_runs_and_refuses_new_ones(
    tiny_folder, tiny_int8_folder, tmp_path, number
):
    pack(tiny_int8_folder, packed := tmp_path / "small.zip")
    with serving(tiny_folder, packed) as (process, url, said):
        assert [line.split(":")[0] for line in said] == ["bundle", "small"]
        assert "12 entities, 3 relations" in said[0]
        port = int(url.rpartition(":")[2])
        body = json.dumps(QUESTION).encode()
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client, client.makefile("rb") as answers:
            lines = ["POST /v1/bundles/bundle/tails HTTP/1.1", "Host: here", "Content-Type: application/json"]
            lines += [f"Content-Length: {len(body)}", "Expect: 100-continue", "", ""]
            client.sendall("\r\n".join(lines).encode())
            assert answers.readline().startswith(b"HTTP/1.1 100 ")  # its handler asks for the body: it is running
            assert answers.readline() == b"\r\n"
            process.send_signal(number)
            _wait_until_refused(port)
            assert process.poll() is None
            client.sendall(body)
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            *_, found = answers.read().partition(b"\r\n\r\n")
        expected = Scorer.load(tiny_folder, threads=1).top_tails(*QUESTION.values())
        assert json.loads(found) == plain(expected)
        code, result, err = ended(process)
    assert (code, err) == (0, "")
    assert result.pop("seconds") > 0
    assert result == {
        "schema": "pmd-serve/1",
        "url": url,
        "bundles": ["bundle", "small"],
        "requests": 1,
        "questions": 1,
        "rejected": 0,
        "stopped_by": number.name,
    }


def test_the_signal_itself_turns_questions_away(tiny_scorer):
    """Those on open connections, too, until the port is closed."""
    app = create_app({"tiny": tiny_scorer})
    server = StoppingServer(uvicorn.Config(app), app.state.handlers, lambda: None)
    with client_of(app) as client:
        assert client.get("/ready").status_code == 200
        server.handle_exit(signal.SIGTERM, None)
        assert client.get("/ready").status_code == 503
        assert client.post("/v1/bundles/tiny/tails", json=QUESTION).status_code == 503
    assert server.should_exit and server.stopped_by is signal.SIGTERM


def test_a_killed_server_leaves_its_port_to_the_next(tiny_folder):
    with serving(tiny_folder) as (process, url, _), httpx.Client(base_url=url) as client:
        assert client.get("/ready").status_code == 200
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
        with pytest.raises(httpx.TransportError):
            client.get("/ready")
        port = url.rpartition(":")[2]
        with serving(tiny_folder, "--port", port) as (_, again, _):
            assert again == url
            assert httpx.post(f"{url}/v1/bundles/bundle/tails", json=QUESTION).status_code == 200


def test_the_key_of_a_file_or_of_the_environment(tiny_folder, tmp_path):
    (tmp_path / "key").write_text("of-the-file\n", encoding="utf-8")
    for args, key in (((), "of-the-environment"), (("--api-key-file", tmp_path / "key"), "of-the-file")):
        with serving(tiny_folder, *args, key="of-the-environment") as (process, url, _):
            assert httpx.get(f"{url}/v1/bundles").status_code == 401
            given = {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{url}/v1/bundles", headers=given).status_code == 200
            process.send_signal(signal.SIGTERM)
            code, result, _ = ended(process)
            assert (code, result["requests"], result["rejected"]) == (0, 2, 1)


def test_changes_outlive_a_reload_by_signal_and_a_kill(tiny_folder, tmp_path):
    asked = "/v1/bundles/bundle/entities"
    admin = {"Authorization": "Bearer may-change"}
    for round_, number in enumerate((signal.SIGKILL, signal.SIGTERM)):
        with (
            serving(tiny_folder, "--journal", tmp_path / "kept", admin_key="may-change") as (process, url, _),
            httpx.Client(base_url=url, headers=admin) as client,
        ):
            about = client.get("/v1/bundles").json()["bundles"][0]
            assert (about["entities"], about["kept"]) == (12 + round_, True)
            added = client.post(asked, json={"id": f"new {round_}", "name": "new", "description": ""})
            assert added.status_code == 201
            process.send_signal(signal.SIGHUP)
            last = time.monotonic() + PATIENCE
            while 'pmd_reloads_total{bundle="bundle",result="done"} 1.0' not in client.get("/metrics").text:
                assert time.monotonic() < last
            assert client.get("/v1/bundles").json()["bundles"][0]["entities"] == 13 + round_
            process.send_signal(number)
            assert process.wait(PATIENCE) == (-number if number == signal.SIGKILL else 0)


def test_other_machines_without_a_key_are_warned_of(tiny_folder):
    for host, key, warned in (("0.0.0.0", None, True), ("0.0.0.0", "word", False), ("localhost", None, False)):
        with serving(tiny_folder, "--host", host, "--quiet", key=key) as (_, url, said):
            assert [line.split(":")[0] for line in said] == ["warning"] * warned
            assert httpx.get(url.replace("0.0.0.0", "127.0.0.1") + "/health").status_code == 200


def test_limits_of_the_command_line(tiny_folder):
    with serving(tiny_folder, "--max-k", 5, "--max-batch", 2, "--max-text-characters", 10) as (_, url, _):
        shape = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["TailsQuestion"]["properties"]
        assert (shape["k"]["maximum"], shape["k"]["default"]) == (5, 5)
        for wrong in ({"k": 6}, {"head": ["fever"] * 3}, {"head": "x" * 11}):
            asked = httpx.post(f"{url}/v1/bundles/bundle/tails", json=QUESTION | wrong)
            assert asked.status_code == 422


def test_mistakes_end_in_one_line(tiny_folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}" in refused(tiny_folder, "--port", port)
    assert "nothere" in refused(tmp_path / "nothere", "--port", 0)
    other = tmp_path / "bundle"
    other.mkdir()
    assert "two bundles are named 'bundle'" in refused(tiny_folder, other, "--port", 0)
    assert "Missing argument" in refused()
    assert "cannot use the address" in refused(tiny_folder, "--host", "no host", "--port", 0)
    for wrong in (b"", b" \n", b"two words", "ä".encode()):
        (tmp_path / "key").write_bytes(wrong)
        assert "the key of" in refused(tiny_folder, "--port", 0, "--api-key-file", tmp_path / "key")
    (tmp_path / "key").write_bytes(b"word")
    both = ("--api-key-file", tmp_path / "key", "--admin-key-file", tmp_path / "key")
    assert "the API key and the admin key are the same" in refused(tiny_folder, "--port", 0, *both)
    assert "absent" in refused(tiny_folder, "--port", 0, "--api-key-file", tmp_path / "absent")


def test_a_missing_extra_says_how_to_install_it(tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(SystemExit) as leaving:
        main([str(tiny_folder)], "pmd-serve")
    assert leaving.value.code == 2
    expected = "error: uvicorn not installed; run: pip install 'pmd-kgc[server]'\n"
    assert capsys.readouterr().err == expected
