"""Is a bundle still what its manifest says? Files, graphs, vectors and metrics, each checked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import onnx

from pmd.export.bundle import ENTITIES_COMPARED
from pmd.export.equalise import sample
from pmd.export.errors import VerifyError
from pmd.export.graph import OPSETS
from pmd.export.parity import Parity, cosine_gap
from pmd.export.source import Run
from pmd.serving.bundle import CARD, ENTITY, MANIFEST, QUERY, SIGNATURE, Bundle
from pmd.serving.encoder import TowerEncoder
from pmd.serving.errors import PmdError
from pmd.serving.known import SPLIT_NAMES
from pmd.serving.scorer import Scorer
from pmd.serving.snapshot import Snapshot

SLACK_COSINE = 1e-4
"""How much further than in the manifest an entity tower may be from the stored vectors, on another machine."""
MOST_MRR_GAP = 1e-3
"""Of the MRR in the manifest and the MRR on this machine: other kernels swap some neighbours in rank."""


class Check(NamedTuple):
    """One thing that was looked at, and what was found."""

    name: str
    holds: bool
    found: str


def verify(path: Path, run: Run | None = None, trusted_keys: Sequence[Path] = ()) -> list[Check]:
    """Check a bundle against its manifest and, if given, who may have signed it and the run it was made of.

    Every check is made whatever the others find. Raises BundleError if files are missing, damaged or changed, since
    nothing else can be looked at then; SignatureError
    if no trusted key signed it.
    """
    scorer = Scorer.load(path, verify=True, trusted_keys=trusted_keys or None)
    signed = [Check("signature", True, "by a trusted key")] if trusted_keys else []
    return [*signed, *_checks(scorer, run)]


def refuse(path: Path, checks: list[Check]) -> None:
    """Raise VerifyError if a check does not hold."""
    if broken := [check for check in checks if not check.holds]:
        raise VerifyError(
            f"{path}: {'; '.join(f'{check.name}: {check.found}' for check in broken)}; export it again"
        )


def _checks(scorer: Scorer, run: Run | None) -> Iterator[Check]:
    bundle = scorer.bundle
    yield Check("files", True, f"{len(bundle.files())} files have the sizes and hashes of the manifest")
    yield _no_strangers(bundle)
    for tower in (QUERY, ENTITY):
        if bundle.has_tower(tower):
            yield _asked(f"{tower} graph", partial(_graph, bundle, tower))
    if bundle.has_tower(ENTITY):
        yield _asked("entity vectors", lambda: _vectors(bundle))
    yield _asked("metrics", lambda: _metrics(scorer))
    yield _gate(bundle)
    if run is not None:
        yield _source(bundle, run)


def _asked(name: str, check: Callable[[], Check]) -> Check:
    """A check that runs a graph, which fails if the graph does."""
    try:
        return check()
    except PmdError as error:
        return Check(name, False, str(error))


def _no_strangers(bundle: Bundle) -> Check:
    """Whether nothing lies in the folder that the manifest does not list; a zip is read by its manifest alone."""
    known = {MANIFEST, SIGNATURE, CARD, *bundle.manifest["files"]}
    found = sorted(
        file.relative_to(bundle.path).as_posix() for file in bundle.path.rglob("*") if file.is_file()
    )  # of a zip: none
    strangers = [name for name in found if name not in known]
    more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
    return Check("unlisted files", not strangers, ", ".join(strangers[:3]) + more or "none")


def _graph(bundle: Bundle, tower: str) -> Check:
    """Whether a tower's graph is a valid ONNX model of the opsets that bundles use."""
    model = bundle.model(tower)
    name = f"{tower} graph"
    try:
        graph = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
        onnx.checker.check_model(graph)
        onnx.shape_inference.infer_shapes(graph, check_type=True)
    except Exception as error:  # onnx's errors have no base class below Exception
        return Check(name, False, f"ONNX refuses it: {(str(error).splitlines() or [type(error).__name__])[0]}")
    opsets = {opset.domain: opset.version for opset in graph.opset_import}
    holds = all(version <= dict(OPSETS).get(domain, 0) for domain, version in opsets.items())
    used = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(opsets.items()))
    return Check(name, holds, f"{len(graph.graph.node)} nodes, IR {graph.ir_version}, opsets {used}")


def _vectors(bundle: Bundle) -> Check:
    """Whether the entity tower gives the vectors that are stored, from the texts that are stored."""
    texts = Snapshot.of(bundle.tables, bundle.templates).texts.entities()
    chosen = sample(len(texts), ENTITIES_COMPARED)
    again = TowerEncoder.load(bundle, ENTITY)([texts[index] for index in chosen])
    gap = cosine_gap(bundle.tables.vectors.vectors()[chosen], again)
    then = bundle.manifest["parity"].get("entity_tower_gap")
    most = (then if isinstance(then, float) else 0.0) + SLACK_COSINE
    return Check("entity vectors", gap <= most, f"cosine gap to the entity tower's {gap:.2g}, at most {most:.2g}")


def _metrics(scorer: Scorer) -> Check:
    """Whether the bundle ranks the split that it was compared on as it did then."""
    parity = scorer.bundle.manifest["parity"]
    split, then = parity.get("split"), parity.get("mrr_bundle")
    if split not in SPLIT_NAMES or not isinstance(then, float):
        return Check("metrics", False, "the manifest's parity names no split and MRR")
    now = scorer.evaluate(split)["mrr"]
    holds = abs(now - then) <= MOST_MRR_GAP
    return Check("metrics", holds, f"MRR on {split} is {now:.4f}, the manifest says {then:.4f}")


def _gate(bundle: Bundle) -> Check:
    """Whether the figures in the manifest pass the gate in the manifest."""
    try:
        parity, gate = Parity.read(bundle.manifest["parity"])
        failures = parity.failures(gate)
    except (KeyError, TypeError, AttributeError) as error:  # a manifest of other hands
        return Check("gate", False, f"the manifest's parity cannot be read: {error!r}")
    return Check("gate", not failures, "; ".join(map(str, failures)) or "passed")


def _source(bundle: Bundle, run: Run) -> Check:
    """Whether the run still holds the weights that the bundle was made of."""
    wanted, label = bundle.manifest["source"].get("weights_sha256"), bundle.manifest["stage"]
    stages = [stage for stage in (run.teacher, *run.students.values()) if stage and stage.label == label]
    if not stages:
        return Check("source", False, f"{run.root} has no {label}")
    holds = stages[0].weights_sha256 == wanted
    return Check(
        "source",
        holds,
        f"{stages[0].folder} has {'the' if holds else 'other'} weights"
        f"{' that it was made of' if holds else ' than it was made of'}",
    )
