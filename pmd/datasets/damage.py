"""Whether a dataset's files are whole: against the hashes in dataset.json, and by their last line."""

from __future__ import annotations

import json
from pathlib import Path

from pmd.datasets.lines import lacks_line_end, suffix_of
from pmd.serving.storage import sha256_of

FACTS = "dataset.json"
LINE_SUFFIXES = {".tsv", ".txt", ".csv", ".nt"}


def damaged_files(path: Path) -> list[str]:
    """Files that are missing or are not what the folder's dataset.json says of them; none if it has no hashes."""
    facts = path / FACTS
    if not facts.is_file():
        return []
    try:
        hashes = json.loads(facts.read_text(encoding="utf-8"))["sha256"]
        expected = {str(name): str(digest) for name, digest in hashes.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # some other kind of dataset.json
    wrong = []
    for name, digest in expected.items():
        file = path / Path(name).name
        if not file.is_file() or sha256_of(file) != digest:
            wrong.append(name)
    return wrong


def unfinished_files(path: Path) -> list[str]:
    """Line-by-line files whose last line has no line end: perhaps they were cut there."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [
        file.name for file in files if file.is_file() and suffix_of(file) in LINE_SUFFIXES and lacks_line_end(file)
    ]
