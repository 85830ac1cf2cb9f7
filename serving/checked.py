"""The files of a bundle, each held to the manifest's sha256 when it is first read."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmd.serving.archive import ByteArray, Source
from pmd.serving.errors import BundleError


class CheckedSource:
    """A source whose listed files are what a manifest says; others are given as they are."""

    def __init__(self, source: Source, files: Mapping[str, Mapping[str, Any]], what: str) -> None:
        """files: by name, an object with the `sha256` of the bytes. what: names the bundle in messages."""
        self._source, self._files, self._what = source, files, what
        self._checked: set[str] = set()
        self._checking = threading.Lock()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is absent."""
        return self._source.size(name)

    def mapped(self, name: str) -> ByteArray:
        """A file's bytes, memory-mapped. Raises BundleError if it is absent, or not what it should be."""
        data = self._source.mapped(name)
        with self._checking:
            if name in self._files and name not in self._checked:
                check_bytes(data, self._files[name]["sha256"], f"{self._what}: {name}")
                self._checked.add(name)
        return data

    def check(self, name: str) -> None:
        """Raise BundleError as `mapped`."""
        self.mapped(name)

    def path(self, name: str) -> Path | None:
        """A path that another library can open, None inside a zip. Raises BundleError as `mapped`."""
        path = self._source.path(name)
        if path is not None:
            self.mapped(name)
        return path


def check_bytes(data: ByteArray | bytes, sha256: str, what: str) -> None:
    """Raise BundleError unless bytes have this sha256, in hex."""
    if hashlib.sha256(data if isinstance(data, bytes) else data.data).hexdigest() != sha256:
        raise BundleError(f"{what} is not what the manifest's sha256 says; it was changed or damaged")
