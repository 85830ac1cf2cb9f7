"""`pmd-hub` against a hub on this machine: what goes over and back, and every way in which it can go wrong."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants
from huggingface_hub.utils import reset_sessions

from pmd.export.hubcli import main
from pmd.export.signing import SigningKey, sign_folder
from pmd.serving.bundle import Bundle
from tests.signing_keys import write_keys
from tests.stub_hub import TOKEN, as_json, refusal, running_hub
from tests.tiny_bundle import write_tiny_bundle

REPO = "me/tiny"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("source") / "tiny-int8", precision="int8")


@pytest.fixture
def hub():
    with running_hub() as server:
        yield server


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    """The library's switches as on a user's machine that is online and has a token, but without its caches."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    reset_sessions()
    yield
    reset_sessions()


def run(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert TOKEN not in result.output
    return result.exit_code, result.stdout, result.stderr


def done(*args):
    code, stdout, stderr = run(*args)
    assert (code, stderr) == (0, "")
    result = json.loads(stdout.splitlines()[-1])
    assert result["schema"] == "pmd-hub/1"
    return result


def failed(*args, code):
    """The one error line of a command that must fail."""
    found, stdout, stderr = run(*args)
    assert found == code, stderr
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr.removeprefix("error: ").rstrip()


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(bundle, hub, *options):
    return done("push", bundle, REPO, "--endpoint", hub.address, *options)


# ---- there and back -------------------------------------------------------------------------------------------


def test_a_bundle_comes_back_as_it_went(bundle, hub, tmp_path):
    pushed = push(bundle, hub)
    files = contents(bundle)
    assert {**files, ".gitattributes": hub.head(REPO)[".gitattributes"]} == hub.head(REPO)
    pulled = done("pull", REPO, tmp_path / "back", "--endpoint", hub.address)
    assert contents(tmp_path / "back") == files
    shared = {
        "schema": "pmd-hub/1", "repo": REPO, "revision": None, "endpoint": hub.address, "files": len(files),
        "commit": hub.repos[REPO].branches["main"], "bytes": sum(map(len, files.values())),
    }  # fmt: skip
    assert pushed == {**shared, "action": "push", "bundle": str(bundle)}
    assert pulled == {**shared, "action": "pull", "bundle": str(tmp_path / "back")}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_large_files_go_as_objects_and_others_in_the_commit(bundle, hub):
    push(bundle, hub)
    assert len([path for method, path in hub.asked if method == "PUT"]) > 0
    assert hub.objects
    assert hub.messages == ["tiny-int8, by pmd-hub"]


def test_stray_files_stay_at_home(bundle, hub, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    (folder / "diary.txt").write_text("private")
    (folder / ".env").write_text("secret")
    push(folder, hub)
    assert {"diary.txt", ".env"}.isdisjoint(hub.head(REPO))


def test_what_an_earlier_bundle_had_goes_and_other_files_stay(bundle, hub, tmp_path):
    push(bundle, hub)
    hub.head(REPO)["LICENSE"] = b"mine"
    other = write_tiny_bundle(tmp_path / "tiny-fp32")
    assert "scales.npy" in contents(bundle)
    push(other, hub)
    assert hub.head(REPO) == {
        **contents(other), "LICENSE": b"mine", ".gitattributes": hub.head(REPO)[".gitattributes"],
    }  # fmt: skip


def test_a_signature_goes_over_and_goes_with_its_bundle(bundle, hub, tmp_path):
    private, public = write_keys(tmp_path, "maker")
    sign_folder(shutil.copytree(bundle, tmp_path / "signed"), SigningKey.read(private))
    push(tmp_path / "signed", hub)
    pulled = done("pull", REPO, tmp_path / "back", "--endpoint", hub.address)
    assert contents(tmp_path / "back") == contents(tmp_path / "signed")
    assert pulled["files"] == len(contents(tmp_path / "signed"))
    Bundle.open(tmp_path / "back", trusted_keys=[public])
    push(bundle, hub)
    assert "manifest.sig" not in hub.head(REPO)


def test_a_repository_of_something_else_keeps_all_it_has(bundle, hub):
    hub.new(REPO, {"weights.bin": b"1", "manifest.json": b'{"name": "a web app"}'})
    push(bundle, hub)
    assert hub.head(REPO) == {**contents(bundle), "weights.bin": b"1"}


def test_branches_and_messages(bundle, hub, tmp_path):
    other = write_tiny_bundle(tmp_path / "tiny-fp32")
    push(bundle, hub)
    pushed = push(other, hub, "--revision", "grade-2", "--message", "Two layers")
    assert pushed["revision"] == "grade-2"
    assert hub.messages[-1] == "Two layers"
    assert "scales.npy" in hub.head(REPO)
    push(other, hub, "--revision", "grade-2")  # the branch is there by now
    for revision, source in (("grade-2", other), ("main", bundle), (pushed["commit"], other)):
        target = tmp_path / f"from-{revision}"
        done("pull", REPO, target, "--revision", revision, "--endpoint", hub.address)
        assert contents(target) == contents(source)


def test_private_repositories(bundle, hub, tmp_path, monkeypatch):
    push(bundle, hub, "--private")
    assert hub.repos[REPO].private
    push(bundle, hub, "--private")
    done("pull", REPO, tmp_path / "mine", "--endpoint", hub.address)
    monkeypatch.delenv("HF_TOKEN")
    line = failed("pull", REPO, tmp_path / "theirs", "--endpoint", hub.address, code=2)
    assert line.startswith(f"there is no {REPO} at {hub.address}, or it is private")


def test_a_public_repository_is_not_taken_for_a_private_one(bundle, hub):
    before = hub.new(REPO, {"README.md": b"hello"})
    line = failed("push", bundle, REPO, "--private", "--endpoint", hub.address, code=2)
    assert "is public" in line
    assert len(before.commits) == 1


def test_pull_without_the_entity_tower(bundle, hub, tmp_path):
    files = {name: data for name, data in contents(bundle).items() if not name.startswith("entity/")}
    hub.new(REPO, files)
    done("pull", REPO, tmp_path / "edge", "--endpoint", hub.address)
    assert contents(tmp_path / "edge") == files


def test_pull_replaces_a_bundle_if_told_to(bundle, hub, tmp_path):
    push(bundle, hub)
    target = write_tiny_bundle(tmp_path / "target")
    before = contents(target)
    arguments = ("pull", REPO, target, "--endpoint", hub.address)
    asked = len(hub.asked)
    assert failed(*arguments, code=2).endswith("exists already; replace it with --force, or choose another folder")
    assert contents(target) == before
    done(*arguments, "--force")
    assert contents(target) == contents(bundle)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for place in (precious, precious / "thesis.txt"):
        line = failed("pull", REPO, place, "--force", "--endpoint", hub.address, code=2)
        assert "is not a bundle; it will not be replaced" in line
    assert contents(precious) == {"thesis.txt": b"years of work"}
    assert asked < len(hub.asked)


def test_a_target_in_the_way_is_said_before_anything_is_asked(bundle, hub, tmp_path):
    failed("pull", REPO, tmp_path, "--endpoint", hub.address, code=2)
    assert hub.asked == []


# ---- bundles that are not what they say -----------------------------------------------------------------------


def test_a_damaged_bundle_is_not_pushed(bundle, hub, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    data = bytearray((folder / "query" / "onnx" / "model.onnx").read_bytes())
    data[50] ^= 1
    (folder / "query" / "onnx" / "model.onnx").write_bytes(data)
    line = failed("push", folder, REPO, "--endpoint", hub.address, code=2)
    assert "query/onnx/model.onnx is not what the manifest's sha256 says" in line
    assert hub.asked == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no bundle at"),
        (lambda path: path.mkdir(), "is not a bundle"),
        (lambda path: path.write_bytes(b"PK"), "is one file; unpack it"),
    ],
    ids="absent empty zip".split(),
)
def test_no_bundle_to_push(hub, tmp_path, make, message):
    make(tmp_path / "thing")
    assert message in failed("push", tmp_path / "thing", REPO, "--endpoint", hub.address, code=2)
    assert hub.asked == []


def test_a_file_changed_on_the_hub_is_noticed(bundle, hub, tmp_path):
    push(bundle, hub)
    files = hub.head(REPO)
    files["entities.tsv"] = files["entities.tsv"].replace(b"a", b"b", 1)
    line = failed("pull", REPO, tmp_path / "back", "--endpoint", hub.address, code=1)
    assert line.startswith(f"{REPO} at commit {hub.repos[REPO].branches['main'][:12]} is damaged: ")
    assert "entities.tsv is not what the manifest's sha256 says" in line
    assert "partial" not in line
    assert not list(tmp_path.glob("*back*"))


def test_a_changed_bundle_does_not_replace_a_good_one(bundle, hub, tmp_path):
    push(bundle, hub)
    hub.head(REPO)["relations.tsv"] = b"changed"
    target = shutil.copytree(bundle, tmp_path / "target")
    assert "relations.tsv" in failed("pull", REPO, target, "--force", "--endpoint", hub.address, code=1)
    assert contents(target) == contents(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_file_missing_on_the_hub_is_noticed(bundle, hub, tmp_path):
    push(bundle, hub)
    del hub.head(REPO)["known.npz"]
    line = failed("pull", REPO, tmp_path / "back", "--endpoint", hub.address, code=1)
    assert "known.npz is missing" in line


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "is not a bundle: it has no manifest.json at its top level"),
        (b"{", "manifest.json is not JSON"),
        (b'{"schema": "pmd-bundle/99"}', "newer than the pmd-bundle/1 this version reads"),
    ],
    ids="absent damaged newer".split(),
)
def test_a_repository_that_is_no_bundle(hub, tmp_path, manifest, message):
    hub.new(REPO, {"README.md": b"hello"} | ({"manifest.json": manifest} if manifest else {}))
    assert message in failed("pull", REPO, tmp_path / "back", "--endpoint", hub.address, code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_cannot_ask_for_more_than_files_below_it(bundle, hub, tmp_path):
    """Names go to the library as patterns; a repository's owner must not steer what is written where."""
    files = contents(bundle)
    for name in ("../outside", "/etc/outside", "a\\..\\b"):
        manifest = json.loads(files["manifest.json"])
        manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
        hub.new(REPO, {**files, "manifest.json": json.dumps(manifest).encode()})
        assert "climbs out" in failed("pull", REPO, tmp_path / "back", "--endpoint", hub.address, code=2)
    manifest = json.loads(files["manifest.json"])
    del manifest["digest"]
    manifest["files"]["*"] = {"bytes": 1, "sha256": "0" * 64}
    hub.new(REPO, {**files, "manifest.json": json.dumps(manifest).encode(), "extra.py": b"print()"})
    assert "* is missing" in failed("pull", REPO, tmp_path / "back", "--endpoint", hub.address, code=1)
    assert ("GET", f"/{REPO}/resolve/{hub.repos[REPO].branches['main']}/extra.py") not in hub.asked


# ---- hubs that refuse, fail or are not there ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nobody", "a/b/c", "me/with space", "me/-bad-", "me/bad..name"])
def test_names_that_no_repository_can_have(bundle, hub, tmp_path, name):
    for arguments in (("push", bundle, name), ("pull", name, tmp_path / "back")):
        line = failed(*arguments, "--endpoint", hub.address, code=2)
        assert line == f"{name!r} cannot be a repository's name; expected OWNER/NAME"


def test_no_such_repository_or_revision(bundle, hub, tmp_path):
    arguments = ("pull", REPO, tmp_path / "back", "--endpoint", hub.address)
    assert failed(*arguments, code=2).startswith(f"there is no {REPO} at {hub.address}, or it is private; check")
    push(bundle, hub)
    line = failed(*arguments, "--revision", "v9", code=2)
    assert line == f"{REPO} at {hub.address} has no revision v9; name a branch, tag or commit with --revision"
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("token", [None, "hf_another_one"])
def test_push_without_a_token_that_may(bundle, hub, monkeypatch, token):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    line = failed("push", bundle, REPO, "--endpoint", hub.address, code=2)
    assert "is refused with 401" in line
    assert "set HF_TOKEN, or log in" in line
    assert "hf_another_one" not in line
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (refusal(403, message="You may only read"), 2, "is refused with 403: You may only read; set HF_TOKEN"),
        (refusal(403, "GatedRepo", "Ask first"), 2, "is gated; ask its owner for access"),
        (refusal(400, message="Bad branch"), 2, "is refused with 400: "),
        (refusal(500, message="Internal Error"), 1, "failed with 500: Internal Error; try again later"),
        (refusal(429), 1, "failed with 429: no reason given; try again later"),
        ((200, {}, b"<html>Welcome</html>"), 1, "cannot be reached or broke off"),
        ((200, {"Content-Type": "application/json"}, b'{"hello": 1}'), 1, "does not answer as a hub does"),
        ("drop", 1, "cannot be reached or broke off"),
    ],
    ids="forbidden gated bad failing busy website other-api dropped".split(),
)
def test_a_hub_that_refuses_or_fails(bundle, hub, tmp_path, answer, code, message):
    hub.new(REPO, contents(bundle))
    hub.fail["GET", "^/api/models"] = answer
    assert message in failed("pull", REPO, tmp_path / "back", "--endpoint", hub.address, code=code)
    assert list(tmp_path.glob("*back*")) == []
    del hub.fail["GET", "^/api/models"]
    hub.fail["POST", "/commit/|/preupload/"] = answer
    assert message in failed("push", bundle, REPO, "--endpoint", hub.address, code=code)


def test_a_card_that_is_not_taken(bundle, hub):
    errors = {"errors": [{"message": '"license" must be a string'}], "warnings": []}
    hub.fail["POST", "/api/validate-yaml"] = as_json(errors, 400)
    line = failed("push", bundle, REPO, "--endpoint", hub.address, code=2)
    assert line.startswith(f"{REPO} at {hub.address} is refused: Invalid metadata in README.md.")
    assert '"license" must be a string' in line


def test_an_object_that_is_not_taken(bundle, hub):
    hub.fail["PUT", "/lfs/"] = refusal(400, message="Quota exceeded")
    assert "is refused with 400: Quota exceeded" in failed("push", bundle, REPO, "--endpoint", hub.address, code=2)
    assert ".gitattributes" in hub.head(REPO)
    assert "manifest.json" not in hub.head(REPO)


@pytest.mark.parametrize("where", ["/lfs/", "/resolve/.*/manifest.json", "/resolve/.*/entities.tsv"])
def test_a_download_that_breaks_off(bundle, hub, tmp_path, where):
    push(bundle, hub)
    hub.fail["GET", where] = "truncate"
    line = failed("pull", REPO, tmp_path / "back", "--endpoint", hub.address, code=1)
    assert f"{hub.address} cannot be reached or broke off" in line
    assert list(tmp_path.glob("*back*")) == []


def test_a_hub_that_is_not_there(bundle, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for arguments in (("push", bundle, REPO), ("pull", REPO, tmp_path / "back")):
        line = failed(*arguments, "--endpoint", address, code=1)
        assert line.startswith(f"{address} cannot be reached or broke off: ")
        assert "refused" in line
    assert list(tmp_path.glob("*back*")) == []


def test_a_folder_that_cannot_be_written(bundle, hub, tmp_path):
    push(bundle, hub)
    (tmp_path / "file").write_text("")
    line = failed("pull", REPO, tmp_path / "file" / "back", "--endpoint", hub.address, code=2)
    assert str(tmp_path / "file") in line


# ---- the command as it is installed ---------------------------------------------------------------------------


def child(*args, **environment):
    code = "from pmd.export.hubcli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
    )


def test_in_a_process_of_its_own(bundle, hub, tmp_path):
    pushed = child("push", bundle, REPO, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.address)
    assert (pushed.returncode, pushed.stderr) == (0, "")
    assert json.loads(pushed.stdout.splitlines()[-1])["endpoint"] == hub.address
    offline = child("pull", REPO, tmp_path / "back", HF_HUB_OFFLINE="1", HF_ENDPOINT=hub.address)
    assert (offline.returncode, offline.stdout) == (2, "")
    assert offline.stderr == "error: HF_HUB_OFFLINE=1 keeps this command from any hub; unset it\n"
    assert not (tmp_path / "back").exists()


def test_the_documentations_commands_run(bundle, hub, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "hub.md").read_text(encoding="utf-8")
    commands = text.split("```sh\n")[1].split("```")[0].splitlines()
    assert len(commands) == 4
    shutil.copytree(bundle, tmp_path / "bundles" / "umls-pmd-grade-3-fp32")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "pmd-hub"
        done(*arguments, "--endpoint", hub.address)
    assert contents(tmp_path / "bundles" / "theirs") == contents(bundle)
    assert hub.messages[-1] == "Three layers"


def test_help_and_usage():
    code, stdout, _ = run("--help")
    assert (code, "Examples:" in stdout, "push" in stdout, "pull" in stdout) == (0, True, True, True)
    for command, option in (("push", "--private"), ("pull", "--force")):
        code, stdout, _ = run(command, "--help")
        assert (code, "Examples:" in stdout, option in stdout) == (0, True, True)
    assert "Missing argument" in failed("push", code=2)


def test_bars_are_for_terminals(bundle, hub, monkeypatch, capfd):
    from pmd.export import hubcli

    monkeypatch.setattr(hubcli, "show_progress", lambda quiet: not quiet)
    main_args = ["push", str(bundle), REPO, "--endpoint", hub.address]
    for quiet in (["--quiet"], []):
        with pytest.raises(SystemExit, match="0"):
            main(main_args + quiet)
        assert bool(capfd.readouterr().err) == (not quiet)


def test_a_pulled_bundle_answers(bundle, hub, tmp_path):
    push(bundle, hub)
    done("pull", REPO, tmp_path / "back", "--endpoint", hub.address)
    assert Bundle.open(tmp_path / "back", verify=True).manifest == Bundle.open(bundle).manifest
