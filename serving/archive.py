"""Where a bundle's bytes come from: a folder, or one uncompressed zip that is read in place.

Both give every file as a flat memory-mapped array, so a table of vectors in a zip costs no more memory than one
in a folder, and nothing is ever unpacked. `.npy` data is parsed here as well, by a strict header pattern: object
arrays do not match it, so no file can make numpy unpickle.
"""

from __future__ import annotations

import io
import math
import re
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pmd.serving.errors import BundleError

ByteArray: TypeAlias = NDArray[np.uint8]

LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # the fixed part of a zip member's local header, APPNOTE 4.3.7
ALIGNMENT = 64  # bytes; numpy pads .npy headers to this, so aligned members give aligned arrays
PADDING_ID = 0xD935  # the extra-field id that zipalign uses for padding
ENCRYPTED = 0x1 | 0x40
NPY_HEADER = re.compile(
    rb"\{'descr': '([<|](?:i1|u1|i4|i8|f4|f8))', 'fortran_order': (False|True), "
    rb"'shape': \(((?:(?:0|[1-9]\d*)(?:, (?:0|[1-9]\d*))*,?)?)\), \} *\n?"
)


class Source(Protocol):
    """A set of named files, read-only."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is absent."""

    def mapped(self, name: str) -> ByteArray:
        """A file's bytes, uint8 (bytes,), memory-mapped. Raises BundleError if it is absent."""

    def path(self, name: str) -> Path | None:
        """A path that another library can open, None inside a zip."""


class FolderSource:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is absent or not a file."""
        try:
            info = (self._root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BundleError(f"{self._root}: {name[:60]} cannot be read: {error.strerror}") from error
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def mapped(self, name: str) -> ByteArray:
        """A file's bytes, memory-mapped. Raises BundleError if it is absent."""
        if self.size(name) is None:
            raise BundleError(f"{self._root}: {name} is missing")
        return mapped_file(self._root / name)

    def path(self, name: str) -> Path:
        """Where the file is."""
        return self._root / name


class ZipSource:
    """Members of an uncompressed zip, held as places in its bytes; no file stays open."""

    def __init__(self, data: ByteArray, what: str) -> None:
        """Read the directory of a zip given as bytes; `what` names it in messages.

        Raises BundleError for a damaged zip and for compressed, encrypted, unsafe or duplicate members.
        """
        self._data, self._what = data, what
        self._places: dict[str, tuple[int, int]] = {}
        for info in _members(data, what):
            name = info.filename
            if not is_safe_name(name.removesuffix("/")):
                raise BundleError(
                    f"{what}: member name {name[:60]!r} is absolute or climbs out; pack plain relative names"
                )
            if name in self._places:
                raise BundleError(f"{what}: member {name[:60]!r} is there twice; pack it again")
            self._places[name] = self._place(info)

    @classmethod
    def open(cls, path: Path) -> ZipSource:
        """Map a zip file and read its directory."""
        return cls(mapped_file(path), str(path))

    def names(self) -> list[str]:
        """Every member that is a file."""
        return [name for name in self._places if not name.endswith("/")]

    def size(self, name: str) -> int | None:
        """Bytes of a member; None if it is absent."""
        place = self._places.get(name)
        return None if place is None else place[1]

    def mapped(self, name: str) -> ByteArray:
        """A member's bytes inside the mapped zip. Raises BundleError if it is absent."""
        if name not in self._places:
            raise BundleError(f"{self._what}: {name} is missing")
        start, size = self._places[name]
        return self._data[start : start + size]

    def path(self, name: str) -> None:
        """None: a member has no path of its own."""
        return None

    def _place(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        """Start and size of a member's data. Raises BundleError unless it is stored plainly."""
        what = f"{self._what}: member {info.filename[:60]!r}"
        if info.flag_bits & ENCRYPTED:
            raise BundleError(f"{what} is encrypted; pack it without a password")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise BundleError(
                f"{what} is compressed; pack it uncompressed (zip -0) so that it can be read in place"
            )
        head = self._data[info.header_offset : info.header_offset + LOCAL_HEADER.size].tobytes()
        if len(head) < LOCAL_HEADER.size or not head.startswith(b"PK\x03\x04"):
            raise BundleError(f"{what} has no header where the directory says; the file is damaged")
        *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack(head)
        start = info.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
        if start + info.file_size > len(self._data):
            raise BundleError(f"{what} runs past the end; the file is truncated")
        return start, info.file_size


def _members(data: ByteArray, what: str) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(_Bytes(data)) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error) as error:
        raise BundleError(f"{what} is not a readable zip: {error}") from error


class _Bytes(io.RawIOBase):
    """A mapped array as a seekable file, so that reading a zip's directory touches no other page."""

    def __init__(self, data: ByteArray) -> None:
        self._data, self._at = data, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise ValueError("seek before the start of the file")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece.tobytes()
        self._at += len(piece)
        return len(piece)


def mapped_file(path: Path) -> ByteArray:
    """The bytes of a file, uint8, memory-mapped and read-only. Raises BundleError if it cannot be read."""
    try:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.zeros(0, np.uint8)
        return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)  # the subclass makes every slice slow
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def is_safe_name(name: str) -> bool:
    """Whether a name is relative, printable, and stays below its folder on every system."""
    plain = name.isprintable() and not set(name) & set("\\:")
    return plain and all(part not in ("", ".", "..") for part in name.split("/"))


def npy_array(data: ByteArray, what: str) -> NDArray[Any]:
    """The array of a `.npy` file's bytes, sharing their memory (read-only). `what` names it in messages.

    Only plain numbers are read. Raises BundleError if header and data do not agree to the byte.
    """
    if len(data) < 10 or data[:6].tobytes() != b"\x93NUMPY" or data[6] not in (1, 2) or data[7] != 0:
        raise BundleError(f"{what} is not a numpy file of version 1.0 or 2.0")
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width].tobytes(), "little")
    header = NPY_HEADER.fullmatch(data[8 + width : min(start, 4096)].tobytes())
    if header is None:
        raise BundleError(f"{what} is not an array of plain numbers; it was not read")
    dtype = np.dtype(header[1].decode())
    try:
        shape = tuple(int(size) for size in header[3].split(b",") if size.strip())
        if len(data) - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"holds {len(data) - start} bytes, its header says {shape} {dtype}")
        return data[start:].view(dtype).reshape(shape, order="F" if header[2] == b"True" else "C")
    except (ValueError, OverflowError) as error:  # of numpy: too many dimensions, or one that no integer holds
        raise BundleError(f"{what} is damaged or cut: {str(error)[:200]}") from error


def npz_arrays(data: ByteArray, what: str, *names: str) -> list[NDArray[Any]]:
    """The named arrays of an uncompressed `.npz` (`np.savez`), in aligned memory. Raises BundleError."""
    members = ZipSource(data, what)
    arrays = [npy_array(members.mapped(f"{name}.npy"), f"{what}[{name}]") for name in names]
    # np.savez aligns nothing, and numpy would copy an unaligned array again in every binary search.
    return [np.require(array, requirements="A") for array in arrays]


def pack(folder: Path, target: Path) -> None:
    """Write every file below `folder` to an uncompressed zip, aligned and the same bytes every time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # dated 1980: no clock in the bytes
            info.external_attr = 0o644 << 16
            info.file_size = path.stat().st_size
            start = archive.start_dir + LOCAL_HEADER.size + len(info.filename.encode()) + 4
            gap = -start % ALIGNMENT
            info.extra = struct.pack("<HH", PADDING_ID, gap) + bytes(gap)
            with archive.open(info, "w") as member, open(path, "rb") as file:
                while piece := file.read(1 << 20):
                    member.write(piece)
