"""Which datasets there are by name, and where each is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmd.datasets.catalogue import Entry, load_catalogue
from pmd.datasets.places import fetched_root, local_root, shipped_root
from pmd.errors import DatasetError


def listing(catalogue: Path | None = None) -> list[dict[str, Any]]:
    """A row per dataset: name, where ("PMD_DATA", "package", "cache" or "to fetch"), path, about, licence.

    Where a name is in several places, the row is of the one that is read.
    """
    entries = load_catalogue(catalogue)
    rows: dict[str, dict[str, Any]] = {}
    for where, root in (("PMD_DATA", local_root()), ("package", shipped_root()), ("cache", fetched_root())):
        for folder in sorted(root.iterdir()) if root and root.is_dir() else ():
            if folder.is_dir() and not folder.name.startswith("."):
                rows.setdefault(folder.name, _row(folder.name, where, folder, entries.get(folder.name)))
    for name, entry in entries.items():
        rows.setdefault(name, _row(name, "to fetch", None, entry))
    return list(rows.values())


def entry_of(name: str, catalogue: Mapping[str, Entry]) -> Entry:
    """The catalogue's entry. Raises DatasetError naming the nearest ones."""
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue, n=3, cutoff=0.4) or list(catalogue)
        raise DatasetError(f"no dataset {name!r} in the catalogue; there is {', '.join(near)}")
    return catalogue[name]


def _row(name: str, where: str, folder: Path | None, entry: Entry | None) -> dict[str, Any]:
    return {
        "name": name,
        "where": where,
        "path": str(folder) if folder else None,
        "about": entry.about if entry else None,
        "licence": entry.licence if entry else None,
        "unverified": list(entry.unverified) if entry else [],
    }
