"""Every layout a dataset may have, and which one a path has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pmd.datasets import bare, columns, kgbert, rdf, simkgc, tsv
from pmd.datasets.material import Material
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph

SHOWN_FILES = 5


@dataclass(frozen=True)
class Layout:
    """A layout: how it is recognised, and how it is read (`read` takes `skip_unknown`)."""

    name: str
    looked_for: str
    matches: Callable[[Path], bool]
    read: Callable[..., Material]


LAYOUTS = (
    Layout("tsv", tsv.LOOKED_FOR, tsv.matches, tsv.read),
    Layout("simkgc", simkgc.LOOKED_FOR, simkgc.matches, simkgc.read),
    Layout("kgbert", kgbert.LOOKED_FOR, kgbert.matches, kgbert.read),
    Layout("columns", columns.LOOKED_FOR, columns.matches, columns.read),
    Layout("rdf", rdf.LOOKED_FOR, rdf.matches, rdf.read),
    Layout("bare", bare.LOOKED_FOR, bare.matches, bare.read),  # last: its train.tsv is in others as well
)
FOLDERS_ONLY = {"tsv", "simkgc", "kgbert"}

WRITERS: dict[str, Callable[[KnowledgeGraph, Path], None]] = {
    "tsv": tsv.write,
    "tsv.gz": partial(tsv.write, suffix=".gz"),
    "tsv.xz": partial(tsv.write, suffix=".xz"),
    "simkgc": simkgc.write,
    "kgbert": kgbert.write,
    "csv": partial(columns.write, suffix=".csv"),
    "parquet": partial(columns.write, suffix=".parquet"),
    "nt": partial(rdf.write, suffix=".nt"),
    "turtle": partial(rdf.write, suffix=".ttl"),
    "bare": bare.write,
}


def recognise(path: Path) -> Layout:
    """The layout of a file or folder. Raises DatasetError saying what was looked for where none fits."""
    for layout in LAYOUTS:
        if (path.is_dir() or layout.name not in FOLDERS_ONLY) and layout.matches(path):
            return layout
    looked_for = "; ".join(f"{layout.name}: {layout.looked_for}" for layout in LAYOUTS)
    raise DatasetError(f"{path} is no dataset of a known layout; {_what_is_there(path)}. Looked for {looked_for}")


def read(path: Path, *, skip_unknown: bool = False) -> Material:
    """Read a path in whatever layout it has. Raises DatasetError naming the file and line at fault."""
    return recognise(path).read(path, skip_unknown=skip_unknown)


def _what_is_there(path: Path) -> str:
    if not path.is_dir():
        return "it is a file of another kind"
    names = sorted(entry.name for entry in path.iterdir())
    more = f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    return f"it holds {', '.join(names[:SHOWN_FILES]) or 'nothing'}{more}"
