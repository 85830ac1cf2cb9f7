"""One bundle: a loaded grade in one precision, written beside its target, compared with torch, sealed, renamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from pmd import __version__
from pmd.export.card import model_card
from pmd.export.errors import ParityError
from pmd.export.graph import graph_bytes
from pmd.export.loading import LoadedGrade
from pmd.export.parity import GATES, Parity
from pmd.export.quantize import Precision
from pmd.export.towers import write_tower
from pmd.serving.bundle import CARD, ENTITY, QUERY, seal, write_tables
from pmd.serving.encoder import DYNAMIC_PRECISIONS, TEXTS_PER_RUN, TowerEncoder, open_session
from pmd.serving.known import SPLIT_NAMES
from pmd.serving.manifest import SCHEMA, Manifest
from pmd.serving.ranking import FloatArray, rank_triples
from pmd.serving.scorer import Scorer
from pmd.serving.storage import atomic_folder, write_atomic
from pmd.serving.tables import EntityRow, RelationRow, Tables
from pmd.serving.vectors import VectorTable

PARITY_SCHEMA = "pmd-parity/1"


def write_bundle(
    loaded: LoadedGrade, precision: Precision, out: Path, *, entity_tower: bool = True, replace: bool = False
) -> Manifest:
    """Write the bundle `out` and return its manifest; the folder is whole or absent.

    Raises ParityError, and leaves `OUT.parity.json` behind, if its answers are not those of the torch model.
    """
    report = out.with_name(f"{out.name}.parity.json")
    with atomic_folder(out, replace=replace) as folder:
        graphs = {name: precision.build(tower.graph.model, tower.samples) for name, tower in loaded.towers.items()}
        vectors = {name: _encode(loaded, precision, name, graph) for name, graph in graphs.items()}
        facts = _facts(loaded, precision)
        if all(np.isfinite(values).all() for values in vectors.values()):
            table = precision.table(vectors[ENTITY])
            facts["vectors"] = {"dtype": str(table.values.dtype)}
            for name in (QUERY, ENTITY) if entity_tower else (QUERY,):
                write_tower(folder / name, graphs[name], loaded.grade, getattr(loaded.grade.model, name))
            write_tables(folder, _tables(loaded, table))
            seal(folder, facts)
            parity = loaded.reference.compare(vectors[QUERY], table, _ranks(folder, loaded.reference.split))
        else:
            parity = Parity.broken(loaded.reference.split, sum(map(len, vectors.values())), loaded.reference.mrr)
        facts["parity"] = parity.report(GATES[precision.name])
        _pass_gate(parity, precision, out, report)
        card = model_card(out.name, facts, loaded.graph, folder, loaded.run.machine)
        (folder / CARD).write_text(card, encoding="utf-8")
        manifest = seal(folder, facts)
    report.unlink(missing_ok=True)  # of an earlier attempt
    return manifest


def _encode(loaded: LoadedGrade, precision: Precision, tower: str, graph: onnx.ModelProto) -> FloatArray:
    """Vectors of the texts to compare, float32 (N, D), by the graph, run as the bundle's reader will run it."""
    encoder = TowerEncoder(
        open_session(graph_bytes(graph)),
        loaded.grade.tokenizer,
        loaded.grade.model.width,
        texts_per_run=1 if precision.name in DYNAMIC_PRECISIONS else TEXTS_PER_RUN,
    )
    return encoder(loaded.towers[tower].texts)


def _ranks(folder: Path, split: str) -> FloatArray:
    """Ranks of a split by the bundle as it stands, through the reader that everyone uses."""
    scorer = Scorer.load(folder)
    triples = scorer.known.triples(SPLIT_NAMES.index(split))
    return rank_triples(scorer.split_scores(split), triples, scorer.known).rank()


def _pass_gate(parity: Parity, precision: Precision, out: Path, report: Path) -> None:
    failures = parity.failures(GATES[precision.name])
    if not failures:
        return
    facts = {
        "schema": PARITY_SCHEMA,
        "bundle": out.name,
        "precision": precision.name,
        "parity": parity.report(GATES[precision.name]),
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


def _facts(loaded: LoadedGrade, precision: Precision) -> dict[str, Any]:
    """The manifest but for its parity, the type of its vectors and its files."""
    model, info, ladder = loaded.grade.model, loaded.grade.info, loaded.run.ladder
    trained = loaded.stage.facts
    return {
        "schema": SCHEMA,
        "dataset": loaded.graph.name,
        "method": ladder["method"],
        "stage": loaded.stage.label,
        "grade": model.depth,
        "precision": precision.name,
        "encoder": ladder["encoder"],
        "layers": model.depth,
        "width": model.width,
        "max_tokens": info.max_tokens,
        "parameters": model.num_parameters,
        "seed": ladder["seed"],
        "templates": info.templates.as_dict(),
        "rerank": loaded.run.rerank(),
        "vectors": {},
        "parity": {},
        "metrics": {
            **{key: trained[key] for key in ("valid", "test", "test_reranked")},
            "teacher_test_mrr": loaded.run.teacher_test_mrr(),
        },
        "fused": {name: tower.graph.fused for name, tower in loaded.towers.items()},
        "source": {"weights_sha256": loaded.stage.weights_sha256()},
        "created_by": (
            f"pmd-kgc {__version__}; torch {torch.__version__}; onnx {onnx.__version__}; "
            f"onnxruntime {onnxruntime.__version__}"
        ),
    }
