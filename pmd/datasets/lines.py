"""Lines of a text file, plain, .gz or .xz: UTF-8, with or without BOM, LF or CRLF, each with its number."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pmd.errors import DatasetError

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
COMPRESSED = tuple(OPENERS)
CUT = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)  # what damaged compressed files raise
BLOCK_BYTES = 1 << 20
MOST_UNPACKED = 500
"""Times its own size that a compressed file may unpack to; text does so 3 to 50 times, a bomb thousands."""
UNPACKED_FREELY_BYTES = 64 << 20
"""What any compressed file may unpack to."""


def find(folder: Path, *names: str) -> Path | None:
    """The first file there is among these names; each plain, then .gz, then .xz."""
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in ("", *COMPRESSED))
    return next((path for path in candidates if path.is_file()), None)


def suffix_of(path: Path) -> str:
    """The suffix that tells the format: ".csv" of both `graph.csv` and `graph.csv.gz`; "" if there is none."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower()


def stem_of(path: Path) -> str:
    """The name of a file without its suffixes: "graph" of `graph.csv.gz`."""
    return path.name.removesuffix(path.suffix if path.suffix in COMPRESSED else "").removesuffix(suffix_of(path))


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed as its suffix says; reading raises DatasetError for a decompression bomb."""
    if path.suffix not in COMPRESSED:
        return open(path, "rb")
    # gzip and lzma read lines in Python; buffered, they are read in C, which halves the time of a small file.
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path), BLOCK_BYTES))


class _Unpacked(io.RawIOBase):
    """A compressed file's content, as far as it is no bomb."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, OPENERS[path.suffix](path, "rb")
        self._left = max(UNPACKED_FREELY_BYTES, MOST_UNPACKED * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._file.readinto(buffer))
        self._left -= count
        if self._left < 0:
            raise DatasetError(
                f"{self._path}: it unpacks to more than {MOST_UNPACKED} times its size; unpack it first"
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not empty, without its line end.

    Raises DatasetError naming the line where the file is not UTF-8 or, if compressed, ends too early.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DatasetError(
                        f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start} of the line); "
                        f"convert the file to UTF-8"
                    ) from error
                if line:
                    yield number, line
    except CUT as error:
        raise _cut(path, number, error) from error


def read_text(path: Path) -> str:
    """The whole file as text, without BOM. Raises DatasetError as `lines` does."""
    parts: list[bytes] = []
    try:
        with open_bytes(path) as file:
            while part := file.read(BLOCK_BYTES):
                parts.append(part)
    except CUT as error:
        raise _cut(path, sum(part.count(b"\n") for part in parts), error) from error
    data = b"".join(parts)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error


def lacks_line_end(path: Path) -> bool:
    """Whether a file has content and its last line no line end: perhaps it was cut there."""
    last = b""
    with open_bytes(path) as file:
        while part := file.read(BLOCK_BYTES):
            last = part
    return not last.endswith((b"\n", b"\r")) and bool(last)


def _cut(path: Path, whole_lines: int, error: BaseException) -> DatasetError:
    return DatasetError(
        f"{path}:{whole_lines + 1}: the file is cut short or not compressed as its name says ({error}); "
        f"fetch or compress it again"
    )
