"""A report read back: checked, and with what an older one lacks filled in as unknown."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NoReturn

from pmd.benchmarks.case import FROM_MANIFEST, UNMEASURED, Row
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.report import REPORT, Report
from pmd.benchmarks.schema import breaches

KEYS = ("schema", "machine", "results")
MACHINE = ("cpu", "flags", "cores_used", "cores_available", "cores_physical", "ram_bytes", "container_limits")
FACTS = ("dataset", "command", "started_at", "quick", "seconds", "split", "threads", "questions", "cold_starts")
CALIBRATION = {"matmul_gflops": None, "before": None, "after": None, "slowest_median_percent": None}


def read_report(path: Path) -> Report:
    """The report in `path`, a report.json or the folder that holds it; every key of today's rows is there.

    Raises BenchError if it cannot be read or breaks the schema, or two of its bundles have one name.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        found = json.loads(file.read_bytes(), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise BenchError(f"{file} does not exist; name a report.json of pmd-bench, or its folder") from error
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{file} is no JSON that pmd-bench wrote ({error}); name its report.json") from error
    wrong = _wrong(found)
    if wrong:
        raise BenchError(f"{file} is no report of pmd-bench: {' '.join(wrong.split())}")
    results = [_filled(row) for row in found["results"]]
    _check_names([row["bundle"] for row in results], file)
    machine = {**dict.fromkeys(MACHINE), **found["machine"]}
    machine["calibration"] = CALIBRATION | (machine.get("calibration") or {})
    return {**dict.fromkeys(FACTS), **found, "machine": machine, "results": results}


def _wrong(found: Any) -> str | None:
    """The first reason why this is no report."""
    if isinstance(found, dict):
        absent = [key for key in KEYS if key not in found]
        if absent:
            return f"it has no {absent[0]!r}"
    wrong = next(breaches(found), None)
    if wrong is None and any("bundle" not in row for row in found["results"]):
        return "one of its results has no 'bundle'"
    return wrong


def _filled(row: Row) -> Row:
    whole = {**dict.fromkeys(FROM_MANIFEST), **copy.deepcopy(UNMEASURED), **row}
    for key in ("query_ms", "speedup"):
        whole[key] = UNMEASURED[key] | whole[key]
    return whole


def _check_names(names: list[str], file: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BenchError(f"{file} has several bundles called {twice[0]}; rename one and measure them again")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no figure")
