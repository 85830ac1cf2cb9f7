"""A write-ahead file of changes: one line each, on the disk before the change counts.

The first line names the bundle that the changes are to; each other line is a checksum and a change as JSON. A
process that dies while it writes leaves half a line, which nobody was told is done: it is cut off when the file is
opened again. A damaged line before the last one is refused. A bundle that was saved with some of the changes in it
says how many, and they are not made twice.
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
from pmd.serving.storage import write_atomic

try:
    import fcntl
except ImportError:  # Windows: nobody else's hold is noticed there
    fcntl = None  # type: ignore[assignment]

SCHEMA = "pmd-journal/1"
PUT, REMOVE = "put", "remove"
CHECKSUM_CHARACTERS = 8


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
        self._file, self._lines = file, lines
        self.changes = len(lines)

    @classmethod
    def open(cls, path: Path, bundle: str, saved: dict[str, Any] | None) -> Journal:
        """Open or begin the journal of a bundle. saved: the manifest's note of the journal it was saved with.

        Raises JournalError if the file is damaged, another bundle's, or held by another process.
        """
        if not path.exists():
            header = {"schema": SCHEMA, "name": secrets.token_hex(16), "bundle": bundle}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, _line(header))
        file = open(path, "r+b", buffering=0)  # a line that could not be written must not be tried again later
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
            except (ValueError, KeyError, TypeError, binascii.Error) as error:
                raise JournalError(
                    f"{self.path}, line {number + 2}: not a change of this bundle: {error}"
                ) from error
        self._lines = []

    def write(self, change: Change) -> None:
        """Put a change on the disk; when this returns, it stays. Raises JournalError if it cannot be written."""
        if self._file.closed:
            raise JournalError(f"{self.path} was closed; the change was not made")
        end = self._file.seek(0, os.SEEK_END)
        try:
            left = memoryview(_line(change.as_dict()))
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._undo(end)
            raise JournalError(f"{self.path} cannot be written, the change was not made: {error}") from error
        self.changes += 1

    def note(self) -> dict[str, Any]:
        """What a bundle saved now says of this journal in its manifest."""
        return {"name": self.name, "changes": self.changes}

    def close(self) -> None:
        """Let others have the file; nothing can be written any more."""
        self._file.close()

    def _undo(self, end: int) -> None:
        with suppress(OSError):  # if the disk is gone, half a line is cut off at the next opening
            self._file.truncate(end)


def _line(record: dict[str, Any]) -> bytes:
    data = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    return f"{zlib.crc32(data):08x} ".encode("ascii") + data + b"\n"


def _hold(file: FileIO, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise JournalError(f"{path} is in use by another process; one at a time may change a bundle") from error


def _read(file: FileIO, path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the JSON of every whole line; what a killed process left at the end is cut off."""
    records, good = [], 0
    data = file.read()
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        record = _checked(line)
        if record is None:
            if good + len(line) < len(data):
                raise JournalError(
                    f"{path}, line {number} is damaged; restore the file, or remove it to start anew"
                )
            break
        records.append(record)
        good += len(line)
    header = json.loads(records[0]) if records else {}
    if not isinstance(header, dict) or header.get("schema") != SCHEMA or not isinstance(header.get("name"), str):
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
