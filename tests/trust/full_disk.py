"""A disk of a few kilobytes: a tmpfs that fills, shrinks, grows, and turns read-only, where one may be mounted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILLER = ".filler"


@dataclass(frozen=True)
class Disk:
    """A mounted tmpfs."""

    path: Path

    @property
    def free_bytes(self) -> int:
        """Room left."""
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize

    def resize(self, size_bytes: int) -> None:
        """Give it another size, not less than what it holds; the kernel rounds up to whole pages."""
        _mount("-o", f"remount,size={size_bytes}", str(self.path))

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all room but `leave_bytes` with one file."""
        taken = max(0, self.free_bytes - leave_bytes)
        with open(self.path / FILLER, "wb") as file:
            if taken:
                os.posix_fallocate(file.fileno(), 0, taken)

    def make_room(self) -> None:
        """Take the filling away."""
        (self.path / FILLER).unlink(missing_ok=True)

    def read_only(self) -> None:
        """Refuse all writing from here. Fails (CalledProcessError) while a file is open for writing."""
        _mount("-o", "remount,ro", str(self.path))

    def writable(self) -> None:
        """Allow it again."""
        _mount("-o", "remount,rw", str(self.path))


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Disk]:
    """Mount a tmpfs of `size_bytes` at a new folder; take it away at the end. Raises CalledProcessError."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def why_no_disk() -> str | None:
    """Why no small disk can be mounted here, for `Attack.skip`; None where it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", 65536):
                return None
        except FileNotFoundError:
            return "there is no mount command to make a small disk with"
        except subprocess.CalledProcessError as error:
            return f"no small disk can be mounted here: {error.stderr.strip()}"


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
