"""Made-up reports for tests of what is built from measurements; no number in them was measured."""

from __future__ import annotations

import copy
from typing import Any

from pmd.benchmarks.case import UNMEASURED, Plan, Row
from pmd.benchmarks.report import Report, build, noise


def metrics(mrr: float) -> dict[str, Any]:
    """Metrics in which every figure differs from the others."""
    side = {
        "mrr": mrr,
        "mean_rank": 3.2,
        "hits@1": 0.7 * mrr,
        "hits@3": 0.8 * mrr,
        "hits@10": 0.9 * mrr,
        "queries": 8,
    }
    return {**side, "head": {**side, "mrr": mrr - 0.02}, "tail": {**side, "mrr": mrr + 0.02}}


def row(stage: str = "grade-3", precision: str = "int8", mrr: float = 0.8, size: float = 40, **changes: Any) -> Row:
    """A whole row; `size` in MB."""
    grade = 6 if stage in ("teacher", "pre-distilled") else int(stage.rpartition("-")[2])
    method = changes.get("method", "pmd")
    made: Row = {
        "bundle": f"umls-{method}-{stage}-{precision}",
        "dataset": "umls",
        "method": method,
        "stage": stage,
        "grade": grade,
        "precision": precision,
        "encoder": "tiny",
        "layers": grade,
        "parameters": 10_000_000 + 1_000_000 * grade,
        "seed": 0,
        **copy.deepcopy(UNMEASURED),
        "bundle_bytes": int(size * 1e6),
        "answering_bytes": int(size * 5e5),
        "query_ms": {"p50": size / 20, "p95": size / 15, "p99": size / 10, "mean": size / 18},
        "batch_queries_per_second": 20_000 / size,
        "cold_start_ms": 400.0 + size,
        "peak_rss_bytes": int(size * 2e6),
        "cores_busy": 0.98,
        "metrics": metrics(mrr),
        "metrics_reranked": metrics(mrr + 0.01),
        "mrr_kept": 0.995,
        "mrr_of_teacher": mrr / 0.872,
    }
    return {**made, **changes}


def failed_row(error: str = "the model is damaged") -> Row:
    """A row of a bundle whose manifest was readable and nothing else."""
    empty = copy.deepcopy(UNMEASURED)
    return {**row("grade-4", "fp16"), **empty, "bundle_bytes": 80_000_000, "error": error}


def ladder_rows() -> list[Row]:
    """Two precisions of a teacher and two grades, and a baseline, in no order."""
    rows = [row("grade-3", "fp32", 0.845, 160), row("grade-3", "int8", 0.841, 43, method="baseline")]
    for precision, share, loss in (("int8", 0.27, 0.004), ("fp32", 1.0, 0.0)):
        rows.append(row("grade-4", precision, 0.861 - loss, 168 * share))
        rows.append(row("teacher", precision, 0.872 - loss, 182 * share))
    return rows


def report(rows: list[Row] | None = None, **facts: Any) -> Report:
    """A report of the rows on a made-up machine."""
    loop = {"best_gflops": 60.0, "median_gflops": 57.0}
    machine = {
        "cpu": "A processor",
        "flags": ["avx2"],
        "cores_used": 1,
        "cores_available": 2,
        "cores_physical": 2,
        "frequency_mhz": 2400.0,
        "ram_bytes": 8_000_000_000,
        "os": "an operating system",
        "versions": {"python": "3.11", "onnxruntime": None},
        "container_limits": None,
        "load_average": 0.1,
    }
    known = {"dataset": "umls", "command": "pmd-bench bundles/x", "started_at": "2026-01-05T12:00:00+00:00"}
    rows = ladder_rows() if rows is None else rows
    return build(rows, machine, noise(loop, loop), Plan(), **{**known, "quick": False, "seconds": 1.0, **facts})
