"""What a user's machine does to an export: a full disk, an interrupt, an onnxruntime that cannot."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from click.testing import CliRunner

from pmd.export import bundle as bundle_module
from pmd.export.cli import main
from pmd.serving.errors import BundleError
from tests.tiny_run import write_run

SMALL_DISK = "96k"  # room for the first file of the toy's bundle, not for its graphs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("source"))


def refused(*arguments, code=2):
    """The one error line of a command that must fail."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@contextlib.contextmanager
def small_disk(folder):
    """A file system of a few kilobytes at `folder`; skips the test where we may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no mount command to make a small disk with")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_full_disk(run, tmp_path, precision):
    with small_disk(tmp_path / "disk") as disk:
        line = refused("--grade", 2, "--run", run, "--precision", precision, "--out", disk / "bundle")
        assert "No space left on device" in line
        assert list(disk.iterdir()) == [], "nothing half-written"


def test_a_full_disk_keeps_the_bundle_that_was_there(run, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        old = disk / "bundle"
        old.mkdir()
        (old / "manifest.json").write_text("{}")
        assert "No space left" in refused(
            "--grade", 2, "--run", run, "--precision", "fp32", "--out", old, "--force"
        )
        assert [path.name for path in disk.rglob("*")] == ["bundle", "manifest.json"]


def test_a_full_disk_for_temporary_files(run, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        arguments = ["--grade", 2, "--run", run, "--precision", "int8", "--ort", "--out", tmp_path / "bundle"]
        line = refused(*arguments)
        assert line.startswith(f"error: {disk}/pmd-export-")
        assert line.endswith(
            "No space left on device; make room there or choose another place with the variable TMPDIR"
        )
        assert list(disk.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_an_onnxruntime_that_does_not_know_an_operator(run, tmp_path, monkeypatch):
    original = bundle_module.open_session

    def old(model, **options):
        if b"MatMulNBits" in model:
            raise BundleError("onnxruntime cannot open the model: com.microsoft:MatMulNBits is not a registered op")
        return original(model, **options)

    monkeypatch.setattr(bundle_module, "open_session", old)
    line = refused("--grade", 2, "--run", run, "--precision", "int4", "--out", tmp_path / "new")
    assert "int4 cannot be checked here" in line
    assert "MatMulNBits is not a registered op" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_control_c_at_any_moment(run, tmp_path):
    """A real signal to a real process, soon after it began to write."""
    code = "import sys; from pmd.export.cli import main; main(sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        code,
        "--run",
        str(run),
        "--grade",
        "2",
        "--out",
        "bundle",
        "--precision",
        "int8",
    ]
    for patience in (0.0, 0.05, 0.3):
        child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while child.poll() is None and not any(tmp_path.iterdir()):
            time.sleep(0.002)
        time.sleep(patience)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGINT)
        _, stderr = child.communicate(timeout=120)
        if child.returncode:
            assert (child.returncode, stderr.strip()) == (130, "error: interrupted")
            assert list(tmp_path.iterdir()) == []
        else:
            break  # it was done before the signal came
