"""Run one slice: its trainings one after the other until the time is up, then what is to travel back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from pmd.benchmarks.gpu.errors import RunFailed, SliceError
from pmd.benchmarks.gpu.halves import halve
from pmd.benchmarks.gpu.kit import Kit
from pmd.benchmarks.gpu.parts import write_parts
from pmd.benchmarks.gpu.results import FILE, SCHEMA, read_result, unpack_stages, write_result
from pmd.benchmarks.gpu.slices import Slice, label_of
from pmd.benchmarks.gpu.trainings import TIMED_OUT, Train, Training, pmd_train, report

PACKING_SECONDS = 30.0  # kept back for packing weights: a teacher takes 15 s on one core
PACKING_SHARE = 0.2  # of a short time limit, at most
SPARE_SECONDS = 30.0  # between pmd-train's own limit, which counts from after its imports, and its end by force
SPARE_SHARE = 0.15


@dataclass(frozen=True)
class Sitting:
    """Where and how a slice runs."""

    kit: Kit
    work: Path
    """Run folders and unpacked files; slices of one stay share it."""
    out: Path
    """What is to travel back."""
    seed: int = 0
    device: str = "auto"
    settings: Mapping[str, Any] | None = None
    """Recipe keys laid over every run's."""
    time_limit: float = 540.0
    fresh: bool = False
    """Train the stages of slices that this one needs, where they are not at hand."""
    train: Train = pmd_train


def run_slice(chosen: Slice, sitting: Sitting, starts: Sequence[Path], command: str) -> dict[str, Any]:
    """Run a slice; write OUT/result.json and the weights it returns. `done` in it: whether all runs were finished.

    starts: --out folders of earlier slices, whose stages are taken over. Raises SliceError if a needed slice is not
    at hand, RunFailed if a training ended with an error (the result of the others is written all the same).
    """
    began = time.monotonic()
    _take_in(starts, sitting.work)
    _check_needs(chosen, sitting)
    encoder = sitting.work / "encoder" / sitting.kit.encoder
    sitting.kit.unpack_encoder(encoder)
    keep = min(PACKING_SECONDS, PACKING_SHARE * sitting.time_limit)
    trainings = _trainings(chosen, sitting, encoder)
    entries, failed = _train_all(trainings, sitting, began + sitting.time_limit - keep)
    if not entries:
        raise RunFailed(f"slice {chosen.name}: {failed or 'the time was up before its first run'}")
    result = _result(chosen, sitting, entries, command, failed=failed is not None)
    result |= {"weights": _pack_weights(chosen, sitting), "seconds": round(time.monotonic() - began, 1)}
    write_result(sitting.out / FILE, result)
    if failed:
        raise RunFailed(f"slice {chosen.name}: {failed}; {sitting.out / FILE} holds what was finished before")
    return result


def dataset_of(recipe: str) -> str:
    """The name of the dataset that a recipe, shipped or a file, is for."""
    import yaml

    shipped = Path(str(resources.files("pmd"))) / "recipes" / f"{recipe}.yaml"
    path = Path(recipe) if Path(recipe).suffix in {".yaml", ".yml"} else shipped
    if not path.is_file():
        raise SliceError(f"no recipe {recipe}; a slice names a shipped recipe or a .yaml file")
    return Path(yaml.safe_load(path.read_text(encoding="utf-8"))["dataset"]).name


def _take_in(starts: Sequence[Path], work: Path) -> None:
    """Unpack what earlier slices brought back."""
    for start in starts:
        earlier = read_result(start / FILE)
        unpack_stages(earlier, [start], work / "start" / earlier["label"])


def _check_needs(chosen: Slice, sitting: Sitting) -> None:
    """Without the stages it starts from, a slice would train them first and run out of time."""
    for needed in chosen.needs if not sitting.fresh else ():
        label = label_of(needed, sitting.seed)
        if not list(sitting.work.glob(f"*/{label}/*/*/metrics.json")):
            raise SliceError(
                f"slice {chosen.name} starts from {label}, which is not in {sitting.work}; run it first with the "
                f"same --work, give its folder with --start, or train all with --fresh and a longer --time-limit"
            )


def _trainings(chosen: Slice, sitting: Sitting, encoder: Path) -> list[Training]:
    home = sitting.work / "runs" / chosen.label(sitting.seed)
    data = sitting.kit.dataset(dataset_of(chosen.recipe))
    return [
        Training(
            name=name,
            recipe=chosen.recipe,
            data=data,
            encoder=encoder,
            out=home / name,
            settings={**keys, **(sitting.settings or {})},
            seed=sitting.seed,
            device=sitting.device,
            reuse=(),
        )
        for name, keys in chosen.runs.items()
    ]


def _train_all(
    trainings: Sequence[Training], sitting: Sitting, deadline: float
) -> tuple[list[dict[str, Any]], str | None]:
    """What each run that was begun came to, and why the last one failed, if it did.

    A training that does not stop by itself is killed at the deadline: from a machine that cuts us off, nothing
    at all comes back.
    """
    entries: list[dict[str, Any]] = []
    for planned in trainings:
        left = deadline - time.monotonic()
        limit = left - min(SPARE_SECONDS, SPARE_SHARE * sitting.time_limit)
        if limit < 1:
            break
        training = replace(planned, reuse=_others(planned.out, sitting.work))
        code = sitting.train(training.arguments(limit), left, sitting.work / "cache")
        entry = report(training, training.shown(sitting.kit.root, sitting.work, limit), done=code == 0)
        entries += [entry] if entry else []
        if code not in (0, TIMED_OUT):
            return entries, f"run {training.name} ended with exit code {code}"
        if code == TIMED_OUT:
            break
    return entries, None


def _others(out: Path, work: Path) -> tuple[Path, ...]:
    """Run folders whose finished stages may be taken over."""
    found = sorted(path.parent.parent for path in work.glob("*/*/*/*/metrics.json"))
    return tuple(dict.fromkeys(folder for folder in found if folder != out))


def _result(
    chosen: Slice, sitting: Sitting, entries: list[dict[str, Any]], command: str, *, failed: bool
) -> dict[str, Any]:
    facts, kit = entries[0]["facts"], sitting.kit.facts
    commit = facts["commit"] or kit["commit"]  # a checkout knows its own, code from a kit does not
    return {
        "schema": SCHEMA,
        "slice": chosen.name,
        "label": chosen.label(sitting.seed),
        "seed": sitting.seed,
        "done": not failed and len(entries) == len(chosen.runs) and all(entry["done"] for entry in entries),
        "commit": commit,
        "modified": kit["modified"] if commit == kit["commit"] else None,
        "machine": facts["machine"],
        "versions": facts["versions"],
        "command": command,
        "settings": dict(sitting.settings or {}),
        "runs": entries,
    }


def _pack_weights(chosen: Slice, sitting: Sitting) -> dict[str, Any]:
    """The stages a slice returns, as far as they are finished, in parts beside the result."""
    packed = {}
    for run, stage in chosen.returns:
        folder = sitting.work / "runs" / chosen.label(sitting.seed) / run / stage
        if folder.is_dir():
            with tempfile.TemporaryDirectory() as scratch:
                halve(folder, Path(scratch) / stage)
                packed[f"{run}/{stage}"] = write_parts(Path(scratch) / stage, sitting.out, f"{run}-{stage}")
    return packed
