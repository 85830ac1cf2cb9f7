"""The report: rows in order, what belongs to all of them, and the folder they are written to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pmd.benchmarks.case import Plan, Row
from pmd.benchmarks.errors import BenchError
from pmd.serving.storage import atomic_folder

Report: TypeAlias = dict[str, Any]

SCHEMA = "pmd-bench/1"
REPORT, PAGE, CURVE_SVG, CURVE_PNG = "report.json", "report.html", "curve.svg", "curve.png"
MARKDOWN, SHEET = "report.md", "report.csv"
FILES = (REPORT, PAGE, MARKDOWN, SHEET, CURVE_SVG, CURVE_PNG)
PRECISIONS = ("fp32", "fp16", "int8", "int8-static", "int4")
METHODS = ("pmd", "pmd-no-mgfd", "lkd", "pkd", "baseline")
TEACHER = "teacher"


def build(
    rows: Iterable[Row],
    machine: Mapping[str, Any],
    calibration: Mapping[str, Any],
    plan: Plan,
    **facts: Any,
) -> Report:
    """Everything known about one bench, as it goes into report.json.

    `calibration` is what `noise` returns. `facts` (dataset, command, started_at, quick, seconds) are added as
    they are.
    """
    ordered = sorted(rows, key=_place)
    front = pareto_front(ordered)
    return {
        "schema": SCHEMA,
        **facts,
        "split": plan.split,
        "threads": plan.threads,
        "questions": plan.questions,
        "cold_starts": plan.cold_starts,
        "machine": {
            **machine,
            "matmul_gflops": calibration["matmul_gflops"],
            "calibration": dict(calibration),
        },
        "results": [{**row, "on_front": index in front} for index, row in enumerate(ordered)],
    }


def noise(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """How steady the machine was: the same loop before and after all measurements.

    `matmul_gflops` is the best lap of both; `slowest_median_percent` how far the slower of the two typical
    speeds lies below it. A difference between two bundles smaller than that means nothing.
    """
    best = max(before["best_gflops"], after["best_gflops"])
    slowest = min(before["median_gflops"], after["median_gflops"])
    return {
        "matmul_gflops": best,
        "before": dict(before),
        "after": dict(after),
        "slowest_median_percent": 100 * (1 - slowest / best),
    }


def pareto_front(rows: Sequence[Row]) -> set[int]:
    """Indices of the rows that no other row beats: none is as small and as accurate, and better in one."""
    known = [(index, row["bundle_bytes"], mrr_of(row)) for index, row in enumerate(rows) if row["error"] is None]
    return {
        index
        for index, size, mrr in known
        if not any(s <= size and m >= mrr and (s < size or m > mrr) for _, s, m in known)
    }


def measured(rows: Iterable[Row]) -> list[Row]:
    """The rows whose measurement is whole: a failed row may hold part of its figures."""
    return [row for row in rows if row["error"] is None]


def mrr_of(row: Row) -> Any:
    """MRR of a row's bundle, None where it was not measured."""
    return row["metrics"].get("mrr") if row["metrics"] else None


def label_of(row: Row) -> str:
    """What a row's model is called: teacher, pre-distilled, or grade N."""
    if row["stage"] and not str(row["stage"]).startswith("grade"):
        return str(row["stage"])
    return f"grade {row['grade']}" if row["grade"] is not None else "unknown"


def check_target(out: Path) -> None:
    """Raise BenchError if writing the report to `out` would remove anything that is not a report."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BenchError(f"{out} is a file; choose a folder with --out")
    others = sorted(path.name for path in out.iterdir() if path.name not in FILES)
    if others:
        raise BenchError(
            f"{out} holds other files ({others[0]}); a report replaces its folder, so choose another --out"
        )


def write(report: Report, out: Path) -> None:
    """Write report.json, its page, Markdown, CSV and the curve to `out`, all or none; an old one is replaced."""
    from pmd.benchmarks import curve, page, sheets

    check_target(out)
    with atomic_folder(out, replace=True) as folder:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")
        (folder / CURVE_SVG).write_bytes(curve.svg(report))
        (folder / CURVE_PNG).write_bytes(curve.png(report))
        (folder / PAGE).write_text(page.render(report), encoding="utf-8")
        (folder / MARKDOWN).write_text(sheets.to_markdown(report), encoding="utf-8")
        (folder / SHEET).write_text(sheets.to_csv(report), encoding="utf-8", newline="")


def _place(row: Row) -> tuple[Any, ...]:
    """Teacher first, then grades falling, then precision, then method; what is unknown comes last."""
    grade = row["grade"]
    return (
        row["stage"] != TEACHER,
        grade is None,
        -(grade or 0),
        order_in(PRECISIONS, row["precision"]),
        order_in(METHODS, row["method"]),
        row["stage"] or "",
        row["bundle"],
    )


def order_in(known: Sequence[str], name: str | None) -> tuple[int, str]:
    """Sort key: the place of a name in a known order, names outside it behind, by the alphabet."""
    return (known.index(name), "") if name in known else (len(known), name or "")
