"""Files that are given out only as the manifest has them: read into memory, hashed there, and used from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pmd.serving.archive import ByteArray, Source
from pmd.serving.checked import check_bytes
from pmd.serving.errors import BundleError


class VerifiedSource:
    """Files of another source, each read whole and compared with its sha256 before anyone sees a byte of it.

    What is hashed is the copy that is given out, so a file that changes afterwards changes nothing: there is no
    moment between check and use. It costs the memory of that copy, where another source maps the file; a file that
    is asked for again is read and hashed again. What the manifest does not list is not there.
    """

    def __init__(self, source: Source, files: Mapping[str, Any], held: Mapping[str, bytes], what: str) -> None:
        """files: the manifest's, by name. held: bytes that are known already. what: the bundle, in messages."""
        self._source, self._files, self._held, self._what = source, files, held, what
        self._given: set[str] = set()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is absent, or not in the manifest."""
        if name in self._held:
            return len(self._held[name])
        return self._source.size(name) if name in self._files else None

    def mapped(self, name: str) -> ByteArray:
        """A file's bytes, uint8 (bytes,), read-only, in memory. Raises BundleError if absent or not as listed."""
        if name in self._held:
            return np.frombuffer(self._held[name], np.uint8)
        if name not in self._files:
            raise BundleError(f"{self._what}: the manifest does not list {name}; it was not read")
        data = verified_bytes(self._source, name, self._files, self._what)
        self._given.add(name)
        return np.frombuffer(data, np.uint8)

    def check(self, name: str) -> None:
        """Raise BundleError as `mapped`; what was given out already was checked then."""
        if name not in self._given:
            self.mapped(name)

    def path(self, name: str) -> None:
        """None: another library would read the file once more, and perhaps another file by then."""
        return None


def verified_bytes(source: Source, name: str, files: Mapping[str, Any], what: str) -> bytes:
    """A copy of a file's bytes. Raises BundleError if it is not what the manifest's size and sha256 say."""
    expected, found = files[name]["bytes"], source.size(name)
    if found != expected:  # nothing larger is read into memory
        raise BundleError(f"{what}: {name} has {found or 0} bytes, the manifest says {expected}; copy it again")
    data = _copy(source, name, what)
    check_bytes(data, files[name]["sha256"], f"{what}: {name}")
    return data


def _copy(source: Source, name: str, what: str) -> bytes:
    """A file's bytes, read: a mapped file ends the process if it is cut or its disk fails meanwhile."""
    path = source.path(name)
    if path is None:
        return source.mapped(name).tobytes()
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{what}: {name} cannot be read: {error.strerror}") from error
