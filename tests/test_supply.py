"""What the project is made of: pinned and hashed packages, licences that may be used, builds that do not differ."""

from __future__ import annotations

import email.message
import io
import re
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("packaging", reason="packaging is not installed")

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.dist import packed_again
from scripts.licences import ALLOWED, EXTRAS, PAGE, PROJECT, brought, is_allowed, licence_of, page

ROOT = Path(__file__).resolve().parents[1]
LOCKS = (ROOT / "requirements/ci.txt", ROOT / "requirements/tools.txt")
PINNED = re.compile(r"^([a-z0-9-]+)==(\S+)(?: ; (.+?))? \\$", re.MULTILINE)
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def pins(lock):
    """Requirement of each pinned package that this Python needs, by name."""
    lines = [Requirement(f"{name}=={pin}" + (f"; {marker}" if marker else "")) for name, pin, marker in lock]
    return {line.name: line for line in lines if line.marker is None or line.marker.evaluate()}


def here(lock=LOCKS[0]):
    return pins(PINNED.findall(lock.read_text()))


def installed_as_locked():
    """Whether this environment is CI's: the versions of the lock, and the project as setup.py is now."""
    if not set(EXTRAS) <= set(distribution(PROJECT).metadata.get_all("Provides-Extra") or ()):
        return False
    try:
        return all(line.specifier.contains(version(name)) for name, line in here().items())
    except PackageNotFoundError:
        return False


# ---- the lock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_of_a_lock_is_pinned_and_hashed_and_names_no_index(lock):
    text = lock.read_text()
    names = PINNED.findall(text)
    assert len(names) > 30
    for line in text.splitlines():
        assert line.lstrip().startswith("#") or HASH.fullmatch(line) or PINNED.fullmatch(line), line
    assert not re.search(r"--index|--find-links|--extra|://|^/| @ ", text, re.MULTILINE)
    for block in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block[:60]


def test_the_lock_is_what_setup_py_asks_for():
    """`make lock` was run after the last change of setup.py."""
    locked = here()
    for line in (ROOT / "requirements/ci.in").read_text().splitlines() + (distribution(PROJECT).requires or []):
        wanted = Requirement(line) if line.strip() and not line.startswith("#") else None
        if wanted is None or wanted.name == "torch":
            continue
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in ("", "all", "dev")):
            continue
        pin = next(iter(locked[canonicalize_name(wanted.name)].specifier)).version
        assert wanted.specifier.contains(pin), f"{wanted} is pinned to {pin}; run: make lock"


def test_torch_has_no_place_in_the_lock():
    """A machine's index decides which build of it comes; see the Makefile."""
    assert not [name for name in here() if name == "torch" or name.startswith("nvidia") or name == "triton"]


# ---- licences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_what_an_install_brings_may_be_used(extra):
    refused = {name: licence_of(package) for name, package in brought(extra).items()}
    assert {name: licence for name, licence in refused.items() if not is_allowed(licence)} == {}


def test_the_page_of_licences_is_up_to_date():
    if not installed_as_locked():
        pytest.skip("other versions are installed than those of the lock")
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make licences"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("MIT AND (GPL-3.0-only OR BSD-3-Clause)", False),
        ("(MIT OR Apache-2.0) AND BSD-3-Clause", True),
        ("", False),
        ("not stated", False),
    ],
)
def test_allowed_expressions(expression, allowed):
    assert is_allowed(expression) is allowed


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT-0"}, "MIT-0"),
        ({"License": "Apache 2.0 License"}, "Apache-2.0"),
        (
            {"License": "Copyright 2020\nall of it", "Classifier": "License :: OSI Approved :: BSD License"},
            "BSD-3-Clause",
        ),
        ({"License": "Proprietary", "Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"License": "GPL-3.0"}, "GPL-3.0"),
        ({}, "not stated"),
    ],
)
def test_licences_as_packages_word_them(fields, licence):
    metadata = email.message.Message()
    for key, value in fields.items():
        metadata[key] = value
    assert licence_of(SimpleNamespace(metadata=metadata)) == licence
    assert "GPL" not in " ".join(ALLOWED)


# ---- builds -----------------------------------------------------------------------------------------------------


def archive(members, *, mtime, uid, mode):
    """A .tar.gz of name -> bytes as somebody else packs it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.uname, info.mode = len(data), mtime, uid, f"user{uid}", mode
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def test_source_archives_differ_in_nothing_but_their_files():
    members = [("p/b.py", b"2"), ("p/a.py", b"1"), ("p/umläut", b"")]
    mine = packed_again(archive(members, mtime=5, uid=7, mode=0o664), 1_700_000_000)
    theirs = packed_again(archive(members[::-1], mtime=9, uid=0, mode=0o600), 1_700_000_000)
    assert mine == theirs
    assert mine != packed_again(
        archive([("p/b.py", b"3"), *members[1:]], mtime=5, uid=7, mode=0o664), 1_700_000_000
    )
    with tarfile.open(fileobj=io.BytesIO(mine)) as tar:
        assert [(m.name, m.mode, m.mtime, m.uid, m.uname) for m in tar] == [
            (name, 0o644, 1_700_000_000, 0, "") for name in ("p/a.py", "p/b.py", "p/umläut")
        ]
        assert tar.extractfile("p/a.py").read() == b"1"


# ---- the network ------------------------------------------------------------------------------------------------


def child(code, *arguments):
    command = [sys.executable, "-c", f"import tests.quiet_network\n{code}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_importing_and_answering_try_no_way_out(tiny_folder):
    code = "import sys, pmd.serving.cli, pmd.serving.server.cli, pmd.export.signing\n"
    code += "from pmd.serving import Scorer\nScorer.load(sys.argv[1], threads=1).top_tails('aspirin', 'treats')"
    done = child(code, tiny_folder)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_way_out_would_be_seen():
    done = child("import socket\nsocket.create_connection(('localhost', 1))")
    assert "NETWORK" not in done.stderr
    done = child("import socket\nsocket.socket().connect(('192.0.2.1', 80))")
    assert "NETWORK socket.connect ('192.0.2.1', 80)" in done.stderr
    done = child("import urllib.request\nurllib.request.urlopen('http://192.0.2.1/')")
    assert "NETWORK socket.getaddrinfo 192.0.2.1" in done.stderr
