"""Files that are whole or absent: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmd.serving.errors import PmdError

OLD = ".partial-old-"


class StorageError(PmdError):
    """A target exists already, or cannot be written."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that readers see the old file or the new one, never a part."""
    with atomic_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a library to write to; it becomes `path` only if the block succeeds.

    Left-overs of a killed process are removed first.
    """
    path = Path(os.path.abspath(path))
    _sweep(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` only if the block succeeds.

    An existing `path` is refused, or with `replace` swapped for the new folder at the very end.
    Left-overs of a killed process are removed first. Raises StorageError if `path` exists.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    if path.exists() and not replace:
        raise StorageError(f"{path} exists already; choose another folder or remove it first")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        _swap(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _swap(partial: Path, path: Path) -> None:
    if not path.exists():
        os.rename(partial, path)
        return
    old = path.with_name(f".{path.name}{OLD}{os.getpid()}")
    try:
        os.rename(path, old)
        os.rename(partial, path)
    except BaseException:  # Ctrl-C between the two as well: the old folder must not be lost
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove temporary files and folders that a killed process left for this target.

    A process killed in the middle of a swap leaves no target, only the old folder set aside: it is put back.
    """
    for left in list(path.parent.iterdir()):
        owner = left.name.rpartition("-")[2]
        if not left.name.startswith(f".{path.name}.partial-") or not owner.isdigit() or _alive(int(owner)):
            continue
        if left.is_file():
            left.unlink(missing_ok=True)
        elif left.name.startswith(f".{path.name}{OLD}") and not path.exists():
            os.rename(left, path)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
