"""A study folder: study.json, table.md, the plot, and a run folder for each variant and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmd.errors import RunError
from pmd.run import read_json
from pmd.serving.errors import PmdError

SCHEMA = "pmd-study/1"


class StudyError(PmdError):
    """A study cannot be made as asked: an unknown variant, or a folder that belongs to another study."""


@dataclass(frozen=True)
class StudyFolder:
    """Names of a study's files. No other module spells one of them."""

    root: Path

    @property
    def facts(self) -> Path:
        """Everything the study knows, as one JSON object."""
        return self.root / "study.json"

    @property
    def table(self) -> Path:
        """The Markdown table."""
        return self.root / "table.md"

    @property
    def plots(self) -> dict[str, Path]:
        """The same drawing as SVG and as PNG."""
        return {kind: self.root / f"plot.{kind}" for kind in ("svg", "png")}

    @property
    def journal(self) -> Path:
        """Every trial of a search for weights, a JSON object a line (optuna's journal)."""
        return self.root / "search.journal"

    @property
    def best(self) -> Path:
        """The best recipe a search has found."""
        return self.root / "best.yaml"

    def run(self, variant: str, seed: int) -> Path:
        """The run folder of one variant and seed."""
        return self.root / f"{variant}-seed-{seed}"


def read_facts(folder: StudyFolder) -> dict[str, Any] | None:
    """study.json, or None where no study was begun.

    Raises StudyError if the folder holds something else, RunError if study.json is damaged.
    """
    if folder.facts.is_file():
        return read_json(folder.facts, SCHEMA)
    if folder.root.is_dir() and any(not path.name.startswith(".") for path in folder.root.iterdir()):
        raise StudyError(f"{folder.root} exists and is not a study (no study.json); choose another --out")
    if folder.root.exists() and not folder.root.is_dir():
        raise StudyError(f"{folder.root} is a file; choose another --out")
    return None


def check_same(folder: StudyFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise StudyError if the study in the folder differs from the one asked for in any of the keys of `now`."""
    for key, wanted in now.items():
        found = before.get(key)
        if found == wanted:
            continue
        if key == "recipe" and isinstance(found, dict):
            names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
            key = f"recipe {', '.join(names)}"
        else:
            key = f"{key} ({found!r}, now {wanted!r})"
        raise StudyError(
            f"{folder.root} holds a study with another {key}; go on with the same, or choose another --out"
        )


def read_run(folder: Path, name: str, schema: str) -> dict[str, Any] | None:
    """A JSON file of a run folder, None where it is not there yet. Raises RunError if it is damaged."""
    path = folder / name
    try:
        return read_json(path, schema) if path.is_file() else None
    except RunError as error:
        raise RunError(f"{error}; remove {folder} to train it again") from error
