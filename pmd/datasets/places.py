"""Where a dataset name leads: a path, PMD_DATA, the datasets that come with the package, the cache."""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path

from pmd.errors import DatasetError


def find_dataset(source: str) -> Path:
    """The path of a dataset given by path or name. Raises DatasetError saying where it was looked for."""
    if source and Path(source).exists():
        return Path(source)
    if found := local_copy(source):
        return found
    shipped = ", ".join(shipped_datasets())
    raise DatasetError(
        f"no dataset folder {source}, and no dataset of that name in PMD_DATA, in the package ({shipped}) or "
        f"fetched before; `pmd-data list` shows names, `pmd-data get NAME` fetches one"
    )


def local_copy(name: str) -> Path | None:
    """The folder of a dataset of this name: in PMD_DATA, or the package, or the cache; None if nowhere."""
    if not name or name != Path(name).name:
        return None
    roots = (root for root in (local_root(), shipped_root(), fetched_root()) if root)
    return next((root / name for root in roots if (root / name).is_dir()), None)


def local_root() -> Path | None:
    """PMD_DATA: the folder with the user's own copies, a folder per name; None if it is not set."""
    given = os.environ.get("PMD_DATA")
    return Path(given) if given else None


def shipped_root() -> Path:
    """Where the package keeps its datasets."""
    return Path(str(resources.files("pmd"))) / "data"


def shipped_datasets() -> dict[str, Path]:
    """Datasets that come with the package, by name."""
    return {folder.name: folder for folder in sorted(shipped_root().iterdir()) if folder.is_dir()}


def fetched_root() -> Path:
    """Where `pmd-data get` puts datasets: below PMD_CACHE, or the platform's folder for a user's caches."""
    return cache_folder() / "datasets"


def cache_folder() -> Path:
    """PMD_CACHE, or "pmd" in the platform's folder for a user's caches."""
    if given := os.environ.get("PMD_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pmd"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "pmd"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pmd"
