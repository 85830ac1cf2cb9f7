"""Result files: what a slice brings back, what `benchmarks/results/` keeps of it, and what each must say."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmd.benchmarks.gpu.errors import ResultError
from pmd.benchmarks.gpu.halves import restore
from pmd.benchmarks.gpu.parts import check_parts, read_parts
from pmd.serving.storage import atomic_folder, write_atomic

SCHEMA, FILE = "pmd-gpu-result/1", "result.json"
RESULTS = Path("benchmarks") / "results"
KEYS = ("slice", "label", "seed", "done", "commit", "machine", "versions", "command", "seconds", "runs", "weights")
RUN_KEYS = ("run", "command", "done", "facts", "ladder", "rates", "unfinished")


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all. Raises ResultError if it lacks something."""
    check_result(result, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_result(path: Path) -> dict[str, Any]:
    """A result that says all it must. Raises ResultError."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read as a result: {error}") from error
    check_result(result, path)
    return dict(result)


def check_result(result: Any, path: Path) -> None:
    """Raise ResultError unless the result names commit, machine, seed, command and the figures of each run."""
    if not isinstance(result, Mapping) or result.get("schema") != SCHEMA:
        raise ResultError(f"{path} is not of schema {SCHEMA!r}; collect it from a slice's --out folder")
    if lacking := [key for key in KEYS if key not in result]:
        raise ResultError(f"{path} lacks {', '.join(lacking)}")
    for key in ("commit", "machine", "command"):
        if not result[key]:
            raise ResultError(f"{path}: {key} is empty; a figure without it cannot be repeated")
    if not result["runs"]:
        raise ResultError(f"{path} has no runs")
    for run in result["runs"]:
        if lacking := [key for key in RUN_KEYS if key not in run]:
            raise ResultError(f"{path}: a run lacks {', '.join(lacking)}")


def collect(out: Path, results: Path, weights: Path | None, *, force: bool) -> tuple[Path, dict[str, Any]]:
    """Check what a slice brought back and keep its result. Returns the kept file and the result.

    weights: where run folders with the stages that came back are written, None to leave them in parts. Raises
    ResultError if a finished result would give way to an unfinished one (unless `force`), PartsError if a part is
    missing or damaged.
    """
    result = read_result(out / FILE)
    for manifest in result["weights"].values():
        check_parts(manifest, [out])
    kept = results / f"{result['label']}.json"
    if kept.is_file() and read_result(kept)["done"] and not result["done"] and not force:
        raise ResultError(f"{kept} is finished and {out} is not; give --force to replace it all the same")
    if weights is not None:
        unpack_stages(result, [out], weights / result["label"])
    write_result(kept, result)
    return kept, result


def unpack_stages(result: Mapping[str, Any], parts: list[Path], target: Path) -> list[Path]:
    """Write the stages that came back into run folders TARGET/RUN, weights as float32; returns the run folders.

    A folder that is there already is left as it is.
    """
    folders = []
    for run in result["runs"]:
        stages = [name.split("/")[1] for name in result["weights"] if name.split("/")[0] == run["run"]]
        folder = target / run["run"]
        if stages and not folder.exists():
            with atomic_folder(folder) as partial:
                for stage in stages:
                    _unpack(result["weights"][f"{run['run']}/{stage}"], parts, partial / stage)
                kept = [entry for entry in run["ladder"]["stages"] if entry["stage"] in stages]
                _write(partial / "run.json", run["facts"])
                _write(partial / "ladder.json", {**run["ladder"], "stages": kept})
        if stages:
            folders.append(folder)
    return folders


def results_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Every result kept in a folder, by label."""
    return {path.stem: read_result(path) for path in sorted(folder.glob("*.json"))}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _unpack(manifest: dict[str, Any], parts: list[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        half = Path(scratch) / target.name
        read_parts(manifest, parts, half)
        restore(half, target)
