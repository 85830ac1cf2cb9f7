"""One bundle of a grade, in one precision: written beside its target, compared with torch, sealed, renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from pmd import __version__
from pmd.export.card import model_card
from pmd.export.equalise import sample
from pmd.export.errors import ParityError, TargetError
from pmd.export.graph import graph_bytes
from pmd.export.loading import LoadedGrade, ReadyGrade
from pmd.export.making import Making
from pmd.export.norms import open_norms
from pmd.export.ortformat import write_ort
from pmd.export.parity import Gate, Parity, gate_of
from pmd.export.precisions import BUILDS, TABLES
from pmd.export.signing import SigningKey, sign_folder
from pmd.export.towers import write_tower
from pmd.serving.bundle import CARD, ENTITY, QUERY, seal, write_tables
from pmd.serving.encoder import TowerEncoder, open_session, texts_per_run
from pmd.serving.errors import BundleError
from pmd.serving.manifest import SCHEMA, Manifest
from pmd.serving.ranking import FloatArray
from pmd.serving.rows import EntityRow, RelationRow
from pmd.serving.storage import atomic_folder, discard, write_atomic
from pmd.serving.tables import Tables
from pmd.serving.tokenization import Text
from pmd.serving.vectors import VectorTable

PARITY_SCHEMA = "pmd-parity/1"
ENTITIES_COMPARED = 1024  # of the entity tower's own; stored vectors are all compared


def write_bundle(
    ready: ReadyGrade,
    making: Making,
    out: Path,
    *,
    gate: Mapping[str, float] | None = None,
    replace: bool = False,
    key: SigningKey | None = None,
) -> Manifest:
    """Write the bundle `out`, signed by `key` if there is one, and return its manifest; whole or absent.

    gate: bounds in place of the precision's own, by measure. Raises ParityError, and leaves `OUT.parity.json`
    behind, if its answers are not those of the torch model.
    """
    limits, report = gate_of(making, gate), out.with_name(f"{out.name}.parity.json")
    with atomic_folder(out, replace=replace) as folder:
        build = BUILDS[making.precision]
        graphs = {name: open_norms(build(tower.graph.model, tower.samples)) for name, tower in ready.towers.items()}
        table = TABLES[making.vector_type](ready.entity_vectors)
        parity = _compare(ready, making, graphs, table)
        facts = _facts(ready, making) | {"parity": parity.report(limits)}
        _pass_gate(parity, making, limits, out, report)
        for name in (QUERY, ENTITY) if making.entity_tower else (QUERY,):
            write_tower(folder / name, graphs[name], ready.grade, getattr(ready.grade.model, name), ready.width)
            if making.ort_format:
                write_ort(folder / name)
        write_tables(folder, _tables(ready.loaded, table))
        run = ready.loaded.run
        base_model = run.base_model(ready.loaded.stage)
        card = model_card(out.name, facts, ready.loaded.graph, folder, run.machine, base_model=base_model)
        (folder / CARD).write_text(card, encoding="utf-8")
        manifest = seal(folder, facts)
        if key is not None:
            sign_folder(folder, key)
    discard(report)  # of an earlier attempt
    return manifest


def _compare(
    ready: ReadyGrade, making: Making, graphs: Mapping[str, onnx.ModelProto], table: VectorTable
) -> Parity:
    """A bundle's graphs and table against torch: every query of the split, and a sample of the entities."""
    loaded = ready.loaded
    queries = _encode(ready, making, graphs[QUERY], loaded.texts[QUERY])
    chosen = sample(len(table), ENTITIES_COMPARED)
    again = _encode(ready, making, graphs[ENTITY], [loaded.texts[ENTITY][index] for index in chosen])
    return loaded.reference.compare(queries, table, (chosen, again), ready.narrowing)


def _encode(ready: ReadyGrade, making: Making, graph: onnx.ModelProto, texts: Sequence[Text]) -> FloatArray:
    """Vectors of texts, float32 (N, W), by a graph, run as the bundle's reader will run it.

    Raises TargetError for a graph that this machine's onnxruntime does not open.
    """
    try:
        session = open_session(graph_bytes(graph))
    except BundleError as error:
        raise TargetError(
            f"{making.precision} cannot be checked here: {error}; choose another --precision, or a newer "
            f"onnxruntime than {onnxruntime.__version__}"
        ) from error
    encoder = TowerEncoder(
        session,
        ready.grade.tokenizer,
        ready.width,
        texts_per_run=texts_per_run(making.precision),
    )
    return encoder(texts)


def _pass_gate(parity: Parity, making: Making, limits: Gate, out: Path, report: Path) -> None:
    failures = parity.failures(limits)
    if not failures:
        return
    facts = {
        "schema": PARITY_SCHEMA,
        "bundle": out.name,
        "precision": making.precision,
        "parity": parity.report(limits),
        "failures": [str(failure) for failure in failures],
    }
    write_atomic(report, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    raise ParityError(f"{out.name} differs from torch: {'; '.join(map(str, failures))}; see {report}")


def _tables(loaded: LoadedGrade, vectors: VectorTable) -> Tables:
    graph = loaded.graph
    return Tables(
        entities=tuple(map(EntityRow, graph.entity_ids, graph.names, graph.descriptions)),
        relations=tuple(map(RelationRow, graph.relation_ids, graph.relation_texts)),
        vectors=vectors,
        known=loaded.known,
        graph=graph.neighbours(),
    )


def _facts(ready: ReadyGrade, making: Making) -> dict[str, Any]:
    """The manifest but for its parity and its files."""
    loaded = ready.loaded
    model, info, ladder = loaded.grade.model, loaded.grade.info, loaded.run.ladder
    trained = loaded.stage.facts
    return {
        "schema": SCHEMA,
        "dataset": loaded.graph.name,
        "method": ladder["method"],
        "stage": loaded.stage.label,
        "grade": model.depth,
        "precision": making.precision,
        "encoder": ladder["encoder"],
        "layers": model.depth,
        "width": ready.width,
        "max_tokens": info.max_tokens,
        "parameters": model.num_parameters,
        "seed": ladder["seed"],
        "templates": info.templates.as_dict(),
        "rerank": loaded.run.rerank(),
        "vectors": {"dtype": making.vector_type},
        "vocabulary": {
            "pieces": ready.grade.model.query.config.vocab_size,
            "of": model.query.config.vocab_size,
        },
        "metrics": {
            **{key: trained[key] for key in ("valid", "test", "test_reranked")},
            "teacher_test_mrr": loaded.run.teacher_test_mrr(),
        },
        "fused": {name: tower.graph.fused for name, tower in ready.towers.items()},
        "source": {"weights_sha256": loaded.stage.weights_sha256},
        "created_by": (
            f"pmd-kgc {__version__}; torch {torch.__version__}; onnx {onnx.__version__}; "
            f"onnxruntime {onnxruntime.__version__}"
        ),
    }
