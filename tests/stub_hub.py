"""A hub on this machine: the few endpoints that huggingface_hub asks as it creates, uploads, lists and downloads.

It keeps commits in memory, takes regular and LFS files, wants a token for what changes something or is private, and
can be told to fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_only_for_these_tests"
LARGE = (".onnx", ".npy", ".npz")
"""Names that the stub wants as LFS objects."""
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Repo:
    """Commits (sha -> files) and branches (name -> sha)."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        """Commit a state of all files."""
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch or itself."""
        return revision if revision in self.commits else self.branches.get(revision)


class StubHub(ThreadingHTTPServer):
    """The server. `fail`: method and a pattern of the path -> an answer to give instead, "truncate" or "drop"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.fail: dict[tuple[str, str], Answer | str] = {}
        self.asked: list[tuple[str, str]] = []
        self.messages: list[str] = []

    @property
    def address(self) -> str:
        """What to give as --endpoint."""
        return f"http://127.0.0.1:{self.server_port}"

    def new(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        """A repository that is there already."""
        self.repos[name] = Repo(private)
        self.repos[name].add("main", files)
        return self.repos[name]

    def head(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch's last commit."""
        return self.repos[name].commits[self.repos[name].branches[branch]]


def as_json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def refusal(status: int, code: str = "", message: str = "") -> Answer:
    """An error as the Hub words it."""
    headers = {name: text for name, text in {"X-Error-Code": code, "X-Error-Message": message}.items() if text}
    return status, headers, b""


NO_REPO = refusal(404, "RepoNotFound", "Repository not found")
NO_TOKEN = refusal(401, "", "Invalid credentials in Authorization header")


class Handler(BaseHTTPRequestHandler):
    """Answers by a table of method, pattern and function."""

    server: StubHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for its headers' receipt

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        for (method, pattern), failure in self.server.fail.items():
            if method == self.command and re.search(pattern, path):
                return self.misbehave(failure, path, body)
        return self.send(self.find(path, body))

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def misbehave(self, failure: Answer | str, path: str, body: bytes) -> None:
        if failure == "drop":
            self.close_connection = True
            self.connection.close()
        elif failure == "truncate":
            self.send(self.find(path, body), cut=True)
            self.close_connection = True
        else:
            self.send(failure)  # type: ignore[arg-type]

    def send(self, answer: Answer, *, cut: bool = False) -> None:
        status, headers, body = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)

    def find(self, path: str, body: bytes) -> Answer:
        for method, pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                return function(self, body, **found.groupdict())
        return refusal(404, message=f"the stub does not know {self.command} {path}")

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def visible(self, name: str) -> Repo | None:
        repo = self.server.repos.get(name)
        return repo if repo and (self.known or not repo.private) else None

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def writing(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """A route that wants the token."""
    return lambda hub, body, **names: function(hub, body, **names) if hub.known else NO_TOKEN


def create(hub: Handler, body: bytes) -> Answer:
    wanted = json.loads(body)
    name = f"{wanted['organization']}/{wanted['name']}"
    if name in hub.server.repos:
        return as_json({"error": "You already created this model repo", "url": f"{hub.server.address}/{name}"}, 409)
    hub.server.new(name, {".gitattributes": b"*.onnx filter=lfs\n"}, private=bool(wanted.get("private")))
    return as_json({"url": f"{hub.server.address}/{name}"})


def info(hub: Handler, body: bytes, repo: str, revision: str = "main") -> Answer:
    found = hub.visible(repo)
    sha = found.find(revision) if found else None
    if found is None:
        return NO_REPO
    if sha is None:
        return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    siblings = [{"rfilename": name} for name in found.commits[sha]]
    return as_json({"id": repo, "sha": sha, "private": found.private, "siblings": siblings, "xetEnabled": False})


def branch(hub: Handler, body: bytes, repo: str, name: str) -> Answer:
    found = hub.server.repos[repo]
    if name in found.branches:
        return as_json({"error": "Reference already exists"}, 409)
    found.branches[name] = found.branches["main"]
    return as_json({})


def preupload(hub: Handler, body: bytes, repo: str, revision: str) -> Answer:
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
        }
        for file in json.loads(body)["files"]
    ]
    return as_json({"files": files})


def batch(hub: Handler, body: bytes, repo: str) -> Answer:
    at = hub.server.address
    objects = [
        {**one, "actions": {"upload": {"href": f"{at}/lfs/{one['oid']}"}, "verify": {"href": f"{at}/lfs-verify"}}}
        if one["oid"] not in hub.server.objects
        else one
        for one in json.loads(body)["objects"]
    ]
    return as_json({"transfer": "basic", "objects": objects})


def upload(hub: Handler, body: bytes, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        return refusal(400, message="the object is not what its name says")
    hub.server.objects[oid] = body
    return 200, {}, b""


def verify(hub: Handler, body: bytes) -> Answer:
    asked = json.loads(body)
    stored = hub.server.objects.get(asked["oid"], b"")
    return as_json({}) if len(stored) == asked["size"] else refusal(422, message="not uploaded")


def commit(hub: Handler, body: bytes, repo: str, revision: str) -> Answer:
    found = hub.server.repos[repo]
    if revision not in found.branches:
        return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    files = dict(found.commits[found.branches[revision]])
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            hub.server.messages.append(value["summary"])
        elif entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = hub.server.objects[value["oid"]]
        elif entry["key"] == "deletedFile":
            del files[value["path"]]
    sha = found.add(revision, files)
    return as_json({"commitOid": sha, "commitUrl": f"{hub.server.address}/{repo}/commit/{sha}", "success": True})


def tree(hub: Handler, body: bytes, repo: str, revision: str) -> Answer:
    found = hub.visible(repo)
    if found is None or (sha := found.find(revision)) is None:
        return NO_REPO
    return as_json(
        [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in found.commits[sha].items()
        ]
    )


def resolve(hub: Handler, body: bytes, repo: str, revision: str, name: str) -> Answer:
    found = hub.visible(repo)
    if found is None or (sha := found.find(revision)) is None:
        return NO_REPO
    data = found.commits[sha].get(name)
    if data is None:
        return refusal(404, "EntryNotFound", "Entry not found")
    oid = hashlib.sha256(data).hexdigest()
    headers = {"X-Repo-Commit": sha, "ETag": f'"{oid[:40]}"'}
    if not name.endswith(LARGE):
        return 200, headers, data
    hub.server.objects[oid] = data
    linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data))}
    return 302, {**headers, **linked, "Location": f"{hub.server.address}/lfs/{oid}"}, b""


def object_(hub: Handler, body: bytes, oid: str) -> Answer:
    return 200, {"ETag": f'"{oid}"'}, hub.server.objects[oid]


API = rf"/api/models/{REPO}"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", "/api/validate-yaml", lambda hub, body: as_json({"errors": [], "warnings": []})),
    ("POST", "/api/repos/create", writing(create)),
    ("GET", API, info),
    ("GET", rf"{API}/revision/(?P<revision>.+)", info),
    ("POST", rf"{API}/branch/(?P<name>.+)", writing(branch)),
    ("POST", rf"{API}/preupload/(?P<revision>.+)", writing(preupload)),
    ("POST", rf"{API}/commit/(?P<revision>.+)", writing(commit)),
    ("GET", rf"{API}/tree/(?P<revision>.+)", tree),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", writing(batch)),
    ("PUT", "/lfs/(?P<oid>.+)", upload),
    ("POST", "/lfs-verify", writing(verify)),
    ("GET HEAD", "/lfs/(?P<oid>.+)", object_),
    ("GET HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", resolve),
]


@contextmanager
def running_hub() -> Iterator[StubHub]:
    """A stub that answers until the block ends."""
    with StubHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
