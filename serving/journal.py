"""A write-ahead file of changes: one line each, on the disk before the change counts.

The first line names the bundle that the changes are to; each other line is a checksum and a change as JSON. A
process that dies while it writes leaves half a line, which nobody was told is done: it is cut off when the file is
opened again. A damaged line is refused, the last one as well unless it can be such a half. A bundle that was saved
with some of the changes in it says how many, and they are not made twice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pmd.serving.errors import BundleError, ServingError
from pmd.serving.ranking import FloatArray
from pmd.serving.rows import EntityRow
from pmd.serving.storage import StorageError, create_atomic, explained, words_of

try:
    import fcntl
except ImportError:  # Windows: nobody else's hold is noticed there
    fcntl = None  # type: ignore[assignment]

SCHEMA = "pmd-journal/1"
PUT, REMOVE = "put", "remove"
CHECKSUM_CHARACTERS = 8
SECTOR_BYTES = 512
"""The least that a disk writes: where a power cut left a later part and not an earlier one, whole sectors are 0."""


class JournalError(ServingError):
    """A file of changes is damaged, in use, or belongs to another bundle."""


class Change(NamedTuple):
    """An entity put in (new, or in place of the one with its id) with its unit vector, or one removed by id."""

    entity: str
    row: EntityRow | None = None
    vector: FloatArray | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the vector as base64 of little-endian float32."""
        if self.row is None or self.vector is None:
            return {"do": REMOVE, "id": self.entity}
        data = base64.b64encode(self.vector.astype("<f4").tobytes()).decode("ascii")
        return {"do": PUT, "id": self.entity, "name": self.row.name, "text": self.row.description, "vector": data}

    @classmethod
    def of(cls, record: dict[str, Any], width: int) -> Change:
        """Read back what `as_dict` gave. Raises ValueError or KeyError for anything else."""
        entity = str(record["id"])
        if record["do"] == REMOVE:
            return cls(entity)
        vector = np.frombuffer(base64.b64decode(record["vector"], validate=True), "<f4")
        if record["do"] != PUT or vector.shape != (width,) or not np.isfinite(vector).all():
            raise ValueError(f"not a change with a vector of {width} numbers")
        return cls(entity, EntityRow(entity, str(record["name"]), str(record["text"])), vector.astype(np.float32))


def fingerprint(manifest: bytes) -> str:
    """What a journal calls the bundle with these bytes as its manifest: their sha256."""
    return hashlib.sha256(manifest).hexdigest()


class Journal:
    """An open file of changes; one process holds it at a time."""

    def __init__(self, path: Path, file: FileIO, name: str, lines: list[bytes]) -> None:
        """Use `open`."""
        self.path, self.name = path, name
        self._place, self._process = os.path.abspath(path), os.getpid()
        self._file, self._lines = file, lines
        self._end, self._torn = os.fstat(file.fileno()).st_size, False
        self.changes = len(lines)

    @classmethod
    def open(cls, path: Path, bundle: str, saved: dict[str, Any] | None) -> Journal:
        """Open or begin the journal of a bundle. saved: the manifest's note of the journal it was saved with.

        Raises JournalError if the file is damaged, another bundle's, held by another process, or cannot be written.
        """
        try:
            with explained(path):
                if not path.exists():
                    header = {"schema": SCHEMA, "name": secrets.token_hex(16), "bundle": bundle}
                    create_atomic(path, _line(header))
                file = open(path, "r+b", buffering=0)  # what could not be written must not be tried again later
                return cls._of(file, path, bundle, saved)
        except StorageError as error:
            raise JournalError(str(error)) from error

    def reopened(self, bundle: str, saved: dict[str, Any] | None) -> Journal:
        """The journal at the same path for its bundle opened afresh, read from the beginning; close both.

        The same file keeps its hold, so that no other process can come between; one that was put in its place, or
        removed, is opened or begun as by `open`. No change may be written meanwhile. Raises JournalError.
        """
        if self._file.closed:
            raise JournalError(f"{self.path} was closed; open the bundle with its journal again")
        if not self.path.exists() or not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
            return Journal.open(self.path, bundle, saved)
        file = open(os.dup(self._file.fileno()), "r+b", buffering=0)
        file.seek(0)
        return Journal._of(file, self.path, bundle, saved)

    @classmethod
    def _of(cls, file: FileIO, path: Path, bundle: str, saved: dict[str, Any] | None) -> Journal:
        try:
            _hold(file, path)
            header, lines = _read(file, path)
            _check_owner(header, bundle, saved, len(lines), path)
        except BaseException:
            file.close()
            raise
        return cls(path, file, str(header["name"]), lines)

    def replay(self, width: int, saved: dict[str, Any] | None) -> Iterator[Change]:
        """The changes that the bundle does not have yet, in their order. Raises JournalError for one unreadable."""
        first = int(saved["changes"]) if saved and saved.get("name") == self.name else 0
        for number, line in enumerate(self._lines):
            if number < first:
                continue
            try:
                yield Change.of(json.loads(line), width)
            except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
                raise JournalError(
                    f"{self.path}, line {number + 2}: not a change of this bundle: {error}"
                ) from error
        self._lines = []

    def write(self, change: Change) -> None:
        """Put a change on the disk; when this returns, it stays.

        Raises JournalError if it cannot be kept; then it was not made, and the next one is tried anew.
        """
        if self._file.closed:
            raise JournalError(f"{self.path} was closed; the change was not made")
        try:
            line = _line(change.as_dict())
            self._check_alone()
            self._append(line)
            self._check_in_place()
        except BaseException as error:  # Ctrl-C as well: what was not acknowledged must not come back
            with suppress(OSError):
                self._mend()
            if isinstance(error, OSError):
                told = f"{self.path} cannot be written, the change was not made: {words_of(error)}"
                raise JournalError(told) from error
            raise
        self._end, self.changes, self._torn = self._end + len(line), self.changes + 1, False

    def note(self) -> dict[str, Any]:
        """What a bundle saved now says of this journal in its manifest."""
        return {"name": self.name, "changes": self.changes}

    def close(self) -> None:
        """Let others have the file; nothing can be written any more."""
        self._file.close()

    def _append(self, line: bytes) -> None:
        self._mend()  # what an earlier failure left, and could not be taken away then
        self._file.seek(self._end)  # not where a failed write stopped
        self._torn, left = True, memoryview(line)
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())

    def _mend(self) -> None:
        """Take away what a change that failed has left. Raises OSError; then a later change does it, or opening."""
        if self._torn:
            self._file.truncate(self._end)
            os.fsync(self._file.fileno())
            self._torn = False

    def _check_alone(self) -> None:
        """Raise JournalError unless all that stands in the file is what this process knows of."""
        if os.getpid() != self._process:
            raise JournalError(f"{self.path} is that of the process that opened it; the change was not made")
        size = os.fstat(self._file.fileno()).st_size
        if size != self._end and not self._torn:
            raise JournalError(
                f"{self.path} was changed by another program (it has {size} bytes, expected {self._end}); the "
                "change was not made; save the bundle and open that with a new journal"
            )

    def _check_in_place(self) -> None:
        """Raise JournalError if the file that was written to is not the one that will be read after a restart."""
        try:
            in_place = os.path.samestat(os.stat(self._place), os.fstat(self._file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            in_place = False
        if not in_place:
            raise JournalError(
                f"{self.path} was removed or replaced while it was in use; the change was not made; save the "
                "bundle and open that with a new journal"
            )


def _line(record: dict[str, Any]) -> bytes:
    data = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    return f"{zlib.crc32(data):08x} ".encode("ascii") + data + b"\n"


def _hold(file: FileIO, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JournalError(f"{path} is in use by another process; one at a time may change a bundle") from error


def _read(file: FileIO, path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the JSON of every whole line; what a killed process left at the end is cut off."""
    records: list[bytes] = []
    good = 0
    data = file.readall()
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        record = _checked(line)
        if record is None:
            if good + len(line) < len(data) or (records and not _may_be_half(line, good)):
                raise JournalError(
                    f"{path}, line {number} is damaged; restore the file, or remove it to start anew"
                )
            break
        records.append(record)
        good += len(line)
    header = _header(records[0]) if records else {}
    if header.get("schema") != SCHEMA or not isinstance(header.get("name"), str):
        raise JournalError(f"{path} is not a journal of schema {SCHEMA!r}; name another file")
    file.truncate(good)
    return header, records[1:]


def _checked(line: bytes) -> bytes | None:
    """The JSON of a line; None if it is not whole."""
    checksum, space, data = (
        line[:CHECKSUM_CHARACTERS],
        line[CHECKSUM_CHARACTERS : CHECKSUM_CHARACTERS + 1],
        line[9:],
    )
    whole = data.endswith(b"\n") and space == b" " and checksum == f"{zlib.crc32(data[:-1]):08x}".encode("ascii")
    return data[:-1] if whole else None


def _may_be_half(line: bytes, start: int) -> bool:
    """Whether a last line that is not whole, from byte `start` on, can be what a death or a power cut left.

    Anything else is damage to a line that was acknowledged, and no reason to forget it.
    """
    if not line.endswith(b"\n"):
        return _checked(line[:-1] + b"\n") is None
    ends = range(start // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES, start + len(line), SECTOR_BYTES)
    return any(not line[max(0, end - SECTOR_BYTES - start) : end - start].strip(b"\0") for end in ends)


def _header(data: bytes) -> dict[str, Any]:
    """The first line's record; nothing if it is none."""
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _check_owner(
    header: dict[str, Any], bundle: str, saved: dict[str, Any] | None, changes: int, path: Path
) -> None:
    if saved and saved.get("name") == header["name"]:
        if int(saved["changes"]) > changes:
            raise JournalError(
                f"{path} holds {changes} changes, the bundle was saved with {saved['changes']}; restore the file"
            )
    elif header.get("bundle") != bundle:
        raise JournalError(f"{path} holds changes to another bundle; name another file, or load that bundle")


def note_of(manifest: dict[str, Any], what: str) -> dict[str, Any] | None:
    """The manifest's note of a journal, checked; None without one. Raises BundleError if it is malformed."""
    note = manifest.get("journal")
    if note is None:
        return None
    if not isinstance(note, dict) or not isinstance(note.get("name"), str) or type(note.get("changes")) is not int:
        raise BundleError(f"{what}: journal must hold 'name' and the number 'changes', found {str(note)[:60]!r}")
    return note
