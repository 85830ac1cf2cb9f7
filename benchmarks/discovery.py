"""Which bundles a report is about, and what each says about itself."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pmd.benchmarks.errors import BenchError
from pmd.serving.archive import FolderSource, Source, ZipSource
from pmd.serving.bundle import ENTITY, MANIFEST
from pmd.serving.errors import ServingError
from pmd.serving.manifest import Manifest, parse_manifest
from pmd.serving.storage import folder_bytes, sha256_of

LOG = logging.getLogger(__name__)
LADDER, WEIGHTS = "ladder.json", "model.safetensors"


def latest_run(runs: Path) -> Path:
    """The run folder whose ladder was written last. Raises BenchError where there is none."""
    ladders = sorted(runs.glob(f"*/{LADDER}"), key=lambda path: (path.stat().st_mtime_ns, path))
    if not ladders:
        raise BenchError(f"no run in {runs}/ (a folder with {LADDER}); name the bundles, or run pmd-train first")
    return ladders[-1].parent


def stage_of(bundle: Path, run: Path | None, runs: Path) -> Path:
    """The folder of the weights that a bundle was made from: in `run`, or in the latest of `runs` that has them.

    Raises BundleError, and BenchError where no run has them.
    """
    manifest = manifest_of(bundle)
    wanted, stage = manifest["source"].get("weights_sha256"), str(manifest.get("stage"))
    ladders = sorted(runs.glob(f"*/{LADDER}"), key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    for folder in [ladder.parent for ladder in ladders] if run is None else [run]:
        weights = folder / stage / WEIGHTS
        if weights.is_file() and _sha256(weights, weights.stat().st_mtime_ns) == wanted:
            return weights.parent
    where = f"{runs}/" if run is None else str(run)
    raise BenchError(
        f"no torch weights: {where} has no {stage} that {bundle} was made from; name its run with --run"
    )


@functools.cache
def _sha256(path: Path, _changed_ns: int) -> str:
    """sha256 of a file, read once while it is not written to: a bench asks for every bundle of a grade."""
    return sha256_of(path)


def bundles_of(run: Path, bundles: Path) -> list[Path]:
    """Bundles (folders and zip files) made from the weights of a run's stages, by name.

    Raises BenchError if there are none.
    """
    weights = {sha256_of(path) for path in sorted(run.glob(f"*/{WEIGHTS}"))}
    found = [path for path in _candidates(bundles) if _source_weights(path) in weights]
    if not found:
        raise BenchError(f"{bundles}/ holds no bundle of the run {run}; run: pmd-export --run {run} --all")
    return found


def dataset_of(bundles: Iterable[Path]) -> str | None:
    """The one dataset that the bundles are of; None where none of them can tell.

    Raises BenchError for several: their MRRs do not compare.
    """
    names = set()
    for bundle in bundles:
        try:
            names.add(str(manifest_of(bundle)["dataset"]))
        except ServingError:  # it becomes an error row, which is no reason to refuse the others
            LOG.debug("%s does not tell its dataset", bundle)
    if len(names) > 1:
        listed = ", ".join(sorted(names))
        raise BenchError(f"the bundles are of different datasets ({listed}); bench each dataset apart")
    return next(iter(names), None)


def manifest_of(bundle: Path) -> Manifest:
    """The checked manifest alone: a bundle with other damage can still be named. Raises BundleError."""
    return parse_manifest(_source(bundle).mapped(MANIFEST).tobytes(), f"{bundle}: {MANIFEST}")


def sizes_of(bundle: Path, manifest: Manifest) -> dict[str, int]:
    """`bundle_bytes` on disk, and `answering_bytes`: the same without the optional entity tower."""
    source = _source(bundle)
    total = bundle.stat().st_size if bundle.is_file() else folder_bytes(bundle)
    tower = sum(source.size(name) or 0 for name in manifest["files"] if name.startswith(f"{ENTITY}/"))
    return {"bundle_bytes": total, "answering_bytes": total - tower}


def facts_of(bundle: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The given keys of the manifest (null where absent), its training figures as `trained`, and the sizes."""
    manifest = manifest_of(bundle)
    facts = {key: manifest.get(key) for key in keys}
    return {**facts, **sizes_of(bundle, manifest), "trained": manifest["metrics"]}


def _source(bundle: Path) -> Source:
    return FolderSource(bundle) if bundle.is_dir() else ZipSource.open(bundle)


def _candidates(bundles: Path) -> list[Path]:
    if not bundles.is_dir():
        return []
    visible = (path for path in sorted(bundles.iterdir()) if not path.name.startswith("."))
    return [path for path in visible if (path / MANIFEST).is_file() or path.suffix == ".zip"]


def _source_weights(bundle: Path) -> str | None:
    """sha256 of the weights a bundle was made from; None, with a warning, where the manifest is unreadable."""
    try:
        return manifest_of(bundle)["source"].get("weights_sha256")
    except ServingError as error:
        LOG.warning("left out: %s", error)
        return None
