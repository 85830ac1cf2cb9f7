"""Folders that a bundle is about to be written to."""

from __future__ import annotations

from pathlib import Path

from pmd.serving.bundle import MANIFEST
from pmd.serving.errors import PmdError


def check_target(folder: Path, replace: bool, refusal: type[PmdError], another: str) -> None:
    """Refuse, before any work, a target that is in the way; only a bundle may be replaced.

    refusal: what is raised. another: what the user may choose instead.
    """
    if not folder.exists():
        return
    if not replace:
        raise refusal(f"{folder} exists already; replace it with --force, or choose {another}")
    if not (folder / MANIFEST).is_file():
        raise refusal(f"{folder} is not a bundle; it will not be replaced: choose {another}")
