"""Files and folders are whole or absent, also when the writer is stopped in the middle."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pmd.serving import storage
from pmd.serving.storage import (
    StorageError,
    atomic_file,
    atomic_folder,
    create_atomic,
    scratch_folder,
    sha256_of,
    staying,
    write_atomic,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_the_whole_file(tmp_path):
    target = tmp_path / "a.json"
    write_atomic(target, b"one")
    write_atomic(target, b"two")
    assert target.read_bytes() == b"two"
    assert names(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    write_atomic(target, b"one")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"a.json cannot be written: disk full; make room there"):
        write_atomic(target, b"two")
    assert target.read_bytes() == b"one"
    assert names(tmp_path) == ["a.json"]


def test_atomic_file_appears_only_on_success(tmp_path):
    target = tmp_path / "a.bin"
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    with atomic_file(target) as partial:
        partial.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"


def test_atomic_folder_appears_only_on_success(tmp_path):
    target = tmp_path / "deep" / "bundle"
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as partial:
        (partial / "a").write_text("half")
        raise KeyboardInterrupt
    assert names(target.parent) == []
    with atomic_folder(target) as partial:
        (partial / "a").write_text("whole")
        assert not target.exists()
    assert (target / "a").read_text() == "whole"
    assert names(target.parent) == ["bundle"]


def test_an_existing_folder_is_refused_or_swapped_at_the_end(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(StorageError, match="exists already"), atomic_folder(target):
        pass
    with atomic_folder(target, replace=True) as partial:
        (partial / "new").touch()
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["bundle"]


def test_an_interrupt_within_the_swap_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    rename = os.rename
    monkeypatch.setattr(storage, "_exchanged", lambda *_: False)  # as on systems that have no such step

    def interrupted(source, destination):
        if destination == target and ".partial-old-" not in str(source):
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, replace=True) as partial:
        (partial / "new").touch()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged in one step on Linux alone")
def test_a_folder_is_swapped_in_one_step(tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    monkeypatch.setattr(storage, "_remove", lambda place: None)  # as if killed right after it
    with atomic_folder(target, replace=True) as partial:
        (partial / "new").touch()
        monkeypatch.setattr(os, "rename", None)
    assert names(target) == ["new"]
    assert [names(place) for place in tmp_path.iterdir() if place != target] == [["old"]]


@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_a_link_is_replaced_by_a_folder(tmp_path, monkeypatch, kind, exchanged):
    if not exchanged:
        monkeypatch.setattr(storage, "_exchanged", lambda *_: False)
    (tmp_path / "other").mkdir()
    target = tmp_path / "bundle"
    if kind == "file":
        target.touch()
    else:
        target.symlink_to(tmp_path / "other")
    with atomic_folder(target, replace=True) as partial:
        (partial / "new").touch()
    assert not target.is_symlink()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["bundle", "other"]


def test_names_are_on_the_disk_before_the_writer_goes_on(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(handle):
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("no way to see what a handle leads to")
    monkeypatch.setattr(os, "fsync", noted)
    with atomic_folder(tmp_path / "new" / "bundle") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").touch()
    assert synced[0] == tmp_path.name
    assert {"inner", "file", partial.name} <= set(synced[1:-1])
    assert synced[-1] == "new"
    write_atomic(tmp_path / "a.json", b"one")
    assert synced[-1] == tmp_path.name


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EROFS, "choose a place that can be written"),
        (errno.EIO, "failing"),
    ],
)
def test_a_disk_that_refuses_is_told_with_the_cure(tmp_path, code, cure):
    def refuse():
        raise OSError(code, os.strerror(code))

    with pytest.raises(StorageError, match=rf"bundle cannot be written: {os.strerror(code)}; .*{cure}"):
        with atomic_folder(tmp_path / "bundle"):
            refuse()
    with pytest.raises(StorageError, match=rf"bundle/manifest cannot be written: {os.strerror(code)}; .*{cure}"):
        with atomic_folder(tmp_path / "bundle") as folder, atomic_file(folder / "manifest"):
            refuse()
    assert names(tmp_path) == []


def test_a_folder_removed_meanwhile_is_told_and_other_files_errors_stay(tmp_path):
    with pytest.raises(StorageError, match=r"bundle cannot be written: No such file .* removed meanwhile"):
        with atomic_folder(tmp_path / "bundle") as partial:
            partial.rmdir()
            (partial / "file").touch()
    with pytest.raises(StorageError, match=r"bundle cannot be written: No such file .* removed meanwhile"):
        with atomic_folder(tmp_path / "bundle") as partial:
            (partial / "first").touch()
            shutil.rmtree(partial)
            (partial / "inner").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"a.zip cannot be written: No such file .* removed meanwhile"):
        with scratch_folder(tmp_path / "a.zip") as scratch, atomic_file(tmp_path / "a.zip") as partial:
            with staying(scratch):
                partial.touch()
                scratch.rmdir()
                raise ValueError("there is nothing to pack")
    assert names(tmp_path) == []
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.json"):
        (tmp_path / "source").read_bytes()
    with pytest.raises(StorageError, match=r"nowhere/a.json cannot be written: No such file"):
        write_atomic(tmp_path / "nowhere" / "a.json", b"one")


def test_left_overs_with_this_process_id_are_of_an_earlier_life(tmp_path):
    """In a container every run may have the same id."""
    (tmp_path / f".bundle.partial-{os.getpid()}").mkdir()
    (tmp_path / f".bundle.partial-abc-{os.getpid()}").mkdir()
    with atomic_folder(tmp_path / "bundle") as partial:
        assert [place.name for place in tmp_path.iterdir()] == [partial.name]
        write_atomic(tmp_path / "bundle", b"")  # sweeps as well, but nothing that is under way
        assert partial.is_dir()
        (tmp_path / "bundle").unlink()
    assert names(tmp_path) == ["bundle"]


def dead_pid() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_left_overs_of_a_killed_process_are_removed_and_those_of_a_living_one_kept(tmp_path):
    (tmp_path / f".a[b].partial-{dead_pid()}").mkdir()
    living = tmp_path / f".a[b].partial-{os.getppid()}"
    living.mkdir()
    with atomic_folder(tmp_path / "a[b]"):
        pass
    assert names(tmp_path) == sorted([living.name, "a[b]"])


def test_a_process_killed_within_the_swap_loses_nothing(tmp_path):
    old = tmp_path / f".bundle{storage.OLD}{dead_pid()}"
    old.mkdir()
    (old / "old").touch()
    with pytest.raises(StorageError, match="exists already"), atomic_folder(tmp_path / "bundle"):
        pass
    assert names(tmp_path) == ["bundle"]
    assert names(tmp_path / "bundle") == ["old"]


def test_ctrl_c_on_a_real_process_leaves_nothing(tmp_path):
    code = """
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
        from pathlib import Path
        from pmd.serving.storage import atomic_folder
        with atomic_folder(Path(sys.argv[1]) / "bundle") as partial:
            (partial / "half").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert len(names(tmp_path)) == 1
        child.send_signal(signal.SIGINT)
        child.wait(timeout=30)
    assert child.returncode != 0
    assert names(tmp_path) == []


def test_of_two_that_begin_a_file_one_is_first(tmp_path, monkeypatch):
    assert create_atomic(tmp_path / "deep" / "journal", b"one")
    assert not create_atomic(tmp_path / "deep" / "journal", b"two")

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert create_atomic(tmp_path / "deep" / "other", b"one")
    assert {path.name: path.read_bytes() for path in (tmp_path / "deep").iterdir()} == {
        "journal": b"one", "other": b"one",
    }  # fmt: skip


def test_a_scratch_folder_left_by_a_killed_process_is_removed(tmp_path):
    with scratch_folder(tmp_path / "a.zip") as scratch:
        (scratch / "file").touch()
        left = scratch.name.rpartition("-")[0] + f"-{dead_pid()}"
        (tmp_path / left).mkdir()
    assert names(tmp_path) == [left]
    write_atomic(tmp_path / "a.zip", b"")
    assert names(tmp_path) == ["a.zip"]


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_file_left_by_a_killed_process_is_removed(tmp_path):
    (tmp_path / f".a.json.partial-{dead_pid()}").write_bytes(b"half")
    living = tmp_path / f".a.json.partial-{os.getppid()}"
    living.write_bytes(b"half")
    write_atomic(tmp_path / "a.json", b"whole")
    assert names(tmp_path) == [living.name, "a.json"]
