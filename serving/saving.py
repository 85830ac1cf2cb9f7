"""Writing a changed bundle: the towers copied and checked, the tables written anew, a new manifest over all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pmd.serving.archive import pack
from pmd.serving.bundle import TABLE_FILES, Bundle, seal, write_tables
from pmd.serving.snapshot import Changes
from pmd.serving.storage import StorageError, atomic_file, atomic_folder, scratch_folder, staying
from pmd.serving.tables import Tables


def save_bundle(
    bundle: Bundle,
    tables: Tables,
    changes: Changes,
    journal: dict[str, Any] | None,
    path: Path,
    *,
    replace: bool = False,
) -> Path:
    """Write `bundle` with other tables to a folder, or to a zip if the name ends in `.zip`; returns `path`.

    changes: since the export. journal: which file of changes, and how many of it, are in these tables. The target
    is whole or absent. Raises StorageError if it exists (unless `replace`) or cannot be written, BundleError if a
    file of `bundle` was changed on disk since it was opened.
    """
    if path.suffix != ".zip":
        with atomic_folder(path, replace=replace) as folder:
            _fill(folder, bundle, tables, changes, journal)
        return path
    if path.is_dir() or (path.exists() and not replace):
        raise StorageError(f"{path} exists already; choose another name or remove it first")
    with scratch_folder(path) as folder, staying(folder):
        _fill(folder, bundle, tables, changes, journal)
        with atomic_file(path) as target, staying(folder):  # a folder that is gone would make an empty zip
            pack(folder, target)
    return path


def _fill(folder: Path, bundle: Bundle, tables: Tables, changes: Changes, journal: dict[str, Any] | None) -> None:
    for name in bundle.files():
        if name not in TABLE_FILES:
            for place in reversed(Path(name).parents[:-1]):
                (folder / place).mkdir(exist_ok=True)  # not `folder` itself: if that was removed, files are missing
            (folder / name).write_bytes(bundle.read_verified(name))
    write_tables(folder, tables)
    facts = {key: value for key, value in bundle.manifest.items() if key not in ("files", "journal")}
    if any(changes):
        facts["changes"] = changes._asdict()
    if journal is not None:
        facts["journal"] = journal
    seal(folder, facts)
