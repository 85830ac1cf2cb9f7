"""A folder for what libraries write on the way: in the system's place for temporary files, gone at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmd.serving.storage import StorageError, explained


@contextmanager
def scratch_files() -> Iterator[Path]:
    """Yield such a folder. Raises StorageError if it cannot be written, as on a full disk."""
    with tempfile.TemporaryDirectory(prefix="pmd-export-") as folder:
        try:
            with explained(Path(folder)):
                yield Path(folder)
        except StorageError as error:
            if not str(error).startswith(folder):
                raise
            raise StorageError(f"{error} with the variable TMPDIR") from error
