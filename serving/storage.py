"""Files and folders that are whole or absent: written under a temporary name beside the target, then renamed.

What is in place has been put on the disk before, its folder's entry too, so that a power cut finds the old or the
new. Temporary names hold the process id; those of processes that are gone are removed by the next writer of the
same target.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pmd.serving.errors import PmdError

PARTIAL, OLD = ".partial-", ".partial-old-"
ELSEWHERE = "choose a place that can be written"
ROOM = "make room there or choose another place"
CURES: dict[int | None, str] = {
    None: ROOM,  # numpy tells of a full disk without a number
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EROFS: ELSEWHERE,
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.EIO: "the disk may be failing, choose another",
    errno.ENOENT: "its folder is not there or was removed meanwhile; make it and try again",
}
ALWAYS_OF_WRITING = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""How file systems without hard links, FAT for one, refuse them."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux, fcntl.h and stdio.h
_under_way: set[Path] = set()
"""Temporary names of this process that are in use."""


class StorageError(PmdError):
    """A target exists already, or cannot be written."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that readers see the old file or the new one, never a part.

    Raises StorageError if it cannot be written.
    """
    with atomic_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a library to write to; it becomes `path` only if the block succeeds.

    Left-overs of a killed process are removed first. Raises StorageError if it cannot be written.
    """
    path = Path(os.path.abspath(path))
    with _temporary(path) as partial:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync_folder(path.parent)


def create_atomic(path: Path, data: bytes) -> bool:
    """Write `data` to a new file; False, and nothing done, if there is one: of two processes one comes first.

    Raises StorageError if it cannot be written.
    """
    path = Path(os.path.abspath(path))
    with explained(path):
        make_folders(path.parent)
    with _temporary(path) as partial:
        partial.write_bytes(data)
        _sync(partial)
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS or os.path.lexists(path):
                raise
            os.rename(partial, path)
        _sync_folder(path.parent)
    return True


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` only if the block succeeds.

    An existing `path` is refused, or with `replace` swapped for the new folder at the very end.
    Left-overs of a killed process are removed first. Raises StorageError if `path` exists or cannot be written.
    """
    path = Path(os.path.abspath(path))
    with explained(path):
        make_folders(path.parent)
    with _temporary(path) as partial:
        if os.path.lexists(path) and not replace:
            raise StorageError(f"{path} exists already; choose another folder or remove it first")
        partial.mkdir()
        with staying(partial):
            yield partial
        for place in [*partial.rglob("*"), partial]:
            if place.is_dir():
                _sync_folder(place)
            elif place.is_file():
                _sync(place)
        _swap(partial, path)
        _sync_folder(path.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, removed at the end, or by the next writer of `path` after a kill."""
    path = Path(os.path.abspath(path))
    with explained(path):
        make_folders(path.parent)
    with _temporary(path) as partial:
        partial.mkdir()
        yield partial


@contextmanager
def staying(folder: Path) -> Iterator[None]:
    """Raise FileNotFoundError if a folder is removed meanwhile, even if it was made anew by what writes into it."""
    if os.name == "nt":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)  # as long as it is open, no other folder gets its number
    try:
        yield
        _check_same(handle, folder)
    except Exception as error:  # of a writer or reader that missed its files
        _check_same(handle, folder, error)
        raise
    finally:
        os.close(handle)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise StorageError, with what to do, for an OSError that says that `path` cannot be written.

    Those of other files, which the block may have read, stay as they are.
    """
    path = Path(os.path.abspath(path))
    try:
        yield
    except OSError as error:
        if not _is_of_writing(error, path):
            raise
        raise StorageError(f"{path} cannot be written: {words_of(error)}") from error


def words_of(error: OSError) -> str:
    """What went wrong with writing, and what to do."""
    return f"{error.strerror or error}; {CURES.get(error.errno, ELSEWHERE)}"


def discard(path: Path) -> None:
    """Remove a file that may not be there, and what killed writers of it left beside it.

    Raises StorageError if it cannot be removed.
    """
    path = Path(os.path.abspath(path))
    with explained(path):
        path.unlink(missing_ok=True)
        _sweep(path)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, and put their names on the disk."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary name for an absolute path, at which nothing is left in the end."""
    partial = path.with_name(f".{path.name}{PARTIAL}{secrets.token_hex(3)}-{os.getpid()}")
    _under_way.add(partial)
    try:
        with explained(path):
            _sweep(path)
            try:
                yield partial
            finally:
                _remove(partial)
    except StorageError as error:  # of a file in a temporary folder, which users do not know
        raise StorageError(str(error).replace(str(partial), str(path))) from error
    finally:
        _under_way.discard(partial)


def _check_same(handle: int, folder: Path, cause: Exception | None = None) -> None:
    if not folder.is_dir() or not os.path.samestat(os.fstat(handle), folder.stat()):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from cause


def _is_of_writing(error: OSError, path: Path) -> bool:
    if error.errno in ALWAYS_OF_WRITING:
        return True
    places = [os.path.abspath(os.fsdecode(name)) for name in (error.filename, error.filename2) if name is not None]
    beside = os.path.join(path.parent, f".{path.name}.partial-")
    return any(place.startswith(beside) or Path(place) in (path, *path.parents) for place in places)


def _swap(partial: Path, path: Path) -> None:
    """Put `partial` at `path`; what was there is at `partial` afterwards, or gone."""
    if not os.path.lexists(path):
        os.rename(partial, path)
    elif not _exchanged(partial, path):
        _swap_in_two_steps(partial, path)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False if this system or this file system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc 2.28
    return rename is not None and not rename(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    )


def _swap_in_two_steps(partial: Path, path: Path) -> None:
    """The same with a moment in which nothing is at `path`; if the process dies then, `_sweep` puts it back."""
    old = path.with_name(f".{path.name}{OLD}{os.getpid()}")
    _under_way.add(old)
    try:
        os.rename(path, old)
        os.rename(partial, path)
        _remove(old)
    except BaseException:  # Ctrl-C between the two as well: the old folder must not be lost
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    finally:
        _under_way.discard(old)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system lets one ask for it."""
    try:
        _sync(folder)
    except PermissionError:  # on Windows always, elsewhere for a folder that may be written and not listed
        return
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that have nothing to do
            raise


def _remove(place: Path) -> None:
    """Remove a file or folder, if it is there and can be removed."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with suppress(OSError):
            place.unlink()


def _sweep(path: Path) -> None:
    """Remove temporary files and folders that a killed process left for this target.

    A process killed in the middle of a swap by two renames leaves no target, only the old folder set aside: it is
    put back.
    """
    for left in list(path.parent.iterdir()):
        if not left.name.startswith(f".{path.name}.partial-") or not _abandoned(left):
            continue
        if left.name.startswith(f".{path.name}{OLD}") and not os.path.lexists(path):
            os.rename(left, path)
        else:
            _remove(left)


def _abandoned(left: Path) -> bool:
    """Whether the process that a temporary name ends with is gone; an earlier one may have had this one's id."""
    owner = left.name.rpartition("-")[2]
    if not owner.isdigit():
        return False
    return left not in _under_way if int(owner) == os.getpid() else not _alive(int(owner))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
