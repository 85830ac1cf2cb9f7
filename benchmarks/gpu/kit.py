"""A kit: all that a bare machine needs to run slices, in one folder that is small enough to send.

kit.json     schema, commit, encoder, datasets, and the bytes and sha256 of every file
code/pmd/    this package
encoder/     the encoder's files, weights in float16, in parts
data/NAME/   dataset folders as they are
wheels/      small packages that may be missing there
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pmd.benchmarks.gpu.errors import KitError
from pmd.benchmarks.gpu.halves import halve, restore
from pmd.benchmarks.gpu.parts import read_parts, write_parts
from pmd.benchmarks.gpu.wheels import download_wheels
from pmd.benchmarks.probe import run_python
from pmd.serving.storage import atomic_folder, sha256_of

SCHEMA, FILE = "pmd-gpu-kit/1", "kit.json"
ENCODER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# A child asks: the encoder's place is known to code that imports torch, which this package does not.
LOCATE = """
import json, sys
from pmd.datasets.places import find_dataset
from pmd.encoder import resolve_encoder
files = resolve_encoder(sys.argv[1])
places = [str(find_dataset(name).resolve()) for name in sys.argv[2:]]
print(json.dumps({"name": files.name, "folder": str(files.folder), "sha256": files.sha256, "datasets": places}))
"""


@dataclass(frozen=True)
class Kit:
    """A kit as it lies on this machine."""

    root: Path
    facts: dict[str, Any]

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return str(self.facts["encoder"]["name"])

    def dataset(self, name: str) -> Path:
        """The folder of a dataset. Raises KitError naming those there are."""
        if name not in self.facts["datasets"]:
            raise KitError(f"{self.root} has no dataset {name}; it has {', '.join(self.facts['datasets'])}")
        return self.root / "data" / name

    def unpack_encoder(self, target: Path) -> None:
        """Write the encoder's folder, its weights back in float32, unless it is there already."""
        if target.is_dir():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch, atomic_folder(target) as partial:
            read_parts(self.facts["encoder"]["parts"], [self.root / "encoder"], Path(scratch) / "half")
            restore(Path(scratch) / "half", partial)


def pack_kit(
    target: Path, encoder: str, datasets: Sequence[str], *, python: str | None, max_bytes: int
) -> dict[str, Any]:
    """Pack a kit and return its kit.json; python: the version to fetch wheels for, None for none.

    Raises KitError if the kit has more than `max_bytes`, a part of it cannot be had, or the code has no commit.
    """
    commit = _commit()
    found = json.loads(run_python(LOCATE, encoder, *datasets, timeout=600))
    with atomic_folder(target) as partial:
        shutil.copytree(
            Path(str(resources.files("pmd"))),
            partial / "code" / "pmd",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        for place in map(Path, found["datasets"]):
            shutil.copytree(place, partial / "data" / place.name)
        if python:
            download_wheels(partial / "wheels", python)
        facts = {
            "schema": SCHEMA,
            **commit,
            "python": python,
            "encoder": {
                "name": found["name"],
                "sha256": found["sha256"],
                "parts": _pack_encoder(Path(found["folder"]), partial / "encoder", found["name"]),
            },
            "datasets": [Path(place).name for place in found["datasets"]],
            "files": {name: _facts(partial / name) for name in _files(partial)},
        }
        _check_size(facts, max_bytes)
        (partial / FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def open_kit(root: Path) -> Kit:
    """A kit that is whole. Raises KitError if a file is missing or is not what kit.json says."""
    try:
        facts = json.loads((root / FILE).read_text(encoding="utf-8"))
        schema, files = facts["schema"], facts["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(
            f"{root} is not a kit ({error}); make one with: python -m pmd.benchmarks.gpu prepare"
        ) from error
    if schema != SCHEMA:
        raise KitError(f"{root / FILE} has schema {schema!r}; this version reads {SCHEMA!r}")
    for name, wanted in files.items():
        if not (root / name).is_file():
            raise KitError(f"{root} lacks {name}; send the kit again")
        if _facts(root / name) != wanted:
            raise KitError(f"{root / name} is not the file that was packed; send the kit again")
    return Kit(root, facts)


def size_of(facts: dict[str, Any]) -> int:
    """Bytes of a kit's files, kit.json itself left out."""
    return sum(int(file["bytes"]) for file in facts["files"].values())


def _pack_encoder(folder: Path, target: Path, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        chosen, half = Path(scratch) / "chosen", Path(scratch) / "half"
        chosen.mkdir()
        for file in (*ENCODER_FILES, "model.safetensors"):
            if (folder / file).is_file():
                (chosen / file).symlink_to((folder / file).resolve())
        halve(chosen, half)
        return write_parts(half, target, name)


def _check_size(facts: dict[str, Any], max_bytes: int) -> None:
    total = size_of(facts)
    if total <= max_bytes:
        return
    shares: dict[str, int] = {}
    for name, file in facts["files"].items():
        top = name.split("/")[0]
        shares[top] = shares.get(top, 0) + int(file["bytes"])
    told = ", ".join(f"{top} {size / 2**20:.1f}" for top, size in sorted(shares.items()))
    raise KitError(
        f"the kit has {total / 2**20:.1f} MiB ({told}), more than {max_bytes / 2**20:.1f}; "
        f"name fewer datasets with --dataset, or give --max-bytes"
    )


def _files(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _commit() -> dict[str, Any]:
    """Commit of the checkout that is packed, and whether files differ from it. Raises KitError outside of one."""
    here = str(resources.files("pmd"))

    def ask(*words: str) -> str:
        command = ["git", "-C", here, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "modified": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError) as error:
        raise KitError(f"{here} is not in a git checkout; its results could not name a commit: clone it") from error
