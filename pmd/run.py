"""A run folder: run.json, events.jsonl, ladder.json, a folder per finished stage, a checkpoint while training."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pmd.errors import RunError
from pmd.recipe import Recipe
from pmd.serving.storage import write_atomic

RUN_SCHEMA, LADDER_SCHEMA = "pmd-run/1", "pmd-ladder/1"
PACKAGES = ("pmd-kgc", "torch", "transformers", "tokenizers", "numpy", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """Names of a run's files."""

    root: Path

    @property
    def run(self) -> Path:
        """The recipe as resolved, versions, machine, seed, commit."""
        return self.root / "run.json"

    @property
    def ladder(self) -> Path:
        """Metrics of all finished stages."""
        return self.root / "ladder.json"

    @property
    def events(self) -> Path:
        """What happened, a JSON object a line."""
        return self.root / "events.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The stage in training."""
        return self.root / "checkpoint.safetensors"

    def stage(self, name: str) -> Path:
        """The folder of a finished stage."""
        return self.root / name


def start_run(
    folder: RunFolder, recipe: Recipe, encoder: dict[str, str], device: torch.device, *, resume: bool
) -> None:
    """Write run.json, or with `resume` check that the folder was made by the same recipe and encoder.

    Raises RunError if the folder is in use by another run, or is another recipe's.
    """
    identity = {"recipe": recipe.model_dump(mode="json"), "encoder": encoder}
    if folder.run.is_file():
        if not resume:
            raise RunError(f"{folder.root} holds a run already; go on with --resume or choose another --out")
        before = read_json(folder.run, RUN_SCHEMA)
        if differing := _differences({k: before.get(k) for k in identity}, json.loads(json.dumps(identity))):
            raise RunError(
                f"{folder.root} was made with another {differing}; resume with the same, or choose another --out"
            )
        return
    if folder.root.exists() and any(not _of_a_dead_start(path, folder) for path in folder.root.iterdir()):
        raise RunError(f"{folder.root} exists and is not a run; choose another --out")
    folder.root.mkdir(parents=True, exist_ok=True)
    facts = {
        "schema": RUN_SCHEMA,
        **identity,
        "seed": recipe.seed,
        "commit": _commit(),
        "versions": _versions(),
        "machine": {
            "processor": _processor(),
            "system": platform.platform(),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
    }
    write_json(folder.run, facts)


def _of_a_dead_start(path: Path, folder: RunFolder) -> bool:
    """Whether a start that was killed while it wrote run.json left this; writing it again removes it."""
    return path.name.startswith(f".{folder.run.name}.partial-")


def latest_run(root: Path) -> Path:
    """The run below `root` whose ladder was written last. Raises RunError if there is none."""
    ladders = sorted(root.glob("*/ladder.json"), key=lambda path: path.stat().st_mtime)
    if not ladders:
        raise RunError(f"no finished run below {root}; train one with pmd-train, or name it with --run")
    return ladders[-1].parent


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all; NaN and infinity are refused."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """Read a JSON object of the given schema. Raises RunError if the file is absent, damaged, or another thing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found = value["schema"]
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing; {path.parent} is not a run folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if found != schema:
        raise RunError(f"{path} has schema {found!r}; this version reads {schema!r}")
    return dict(value)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = []
    for part, values in now.items():
        old = before.get(part) or {}
        changed += [f"{part} {key}" for key in values if old.get(key) != values[key]]
    return ", ".join(changed)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the checkout this code runs from, None for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        shown = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
