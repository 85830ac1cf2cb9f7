"""The findings as docs/trust.md shows them: a table between two marks, made from a file of figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pmd.serving.storage import write_atomic

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks/results/cpu/trust.json", ROOT / "docs/trust.md"
BEGIN, END = "<!-- figures: made by python -m tests.trust --record -->\n", "<!-- end of figures -->\n"


def shown(finding: dict[str, Any]) -> str:
    """A finding in a line, and a line for each failure."""
    if "skipped" in finding:
        return f"skipped  {finding['attack']}: {finding['skipped']}"
    state = f"{finding['failed']} FAILED" if finding["failed"] else "held"
    first = (
        f"{state:<9}{finding['attack']}: {finding['cases']:,} cases in {finding['seconds']:.0f} s; {ended(finding)}"
    )
    return "\n".join([first, *(f"    {why}" for why in finding["failures"])])


def ended(finding: dict[str, Any]) -> str:
    """How the cases ended, most of them first, and the figures."""
    outcomes = sorted(finding["outcomes"].items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count:,} {outcome}" for outcome, count in outcomes]
    return "; ".join(parts + [f"{name} {_number(value)}" for name, value in finding["figures"].items()])


def refresh(report: dict[str, Any]) -> None:
    """Put a report's findings over the same attacks' earlier ones in RESULTS, and all of them into PAGE."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["attacks"] if RESULTS.exists() else []
    about = {"machine": report["machine"], "seed": report["seed"]}
    now = {finding["attack"]: finding | about for finding in report["attacks"]}
    findings = [now.pop(finding["attack"], finding) for finding in kept] + list(now.values())
    findings.sort(key=lambda finding: (finding["part"], finding["attack"]))
    text = json.dumps({"schema": report["schema"], "attacks": findings}, indent=1)
    write_atomic(RESULTS, (text + "\n").encode())
    write_atomic(PAGE, with_table(PAGE.read_text(encoding="utf-8"), findings).encode())


def with_table(page: str, findings: Sequence[dict[str, Any]]) -> str:
    """The page with the findings between its marks. Raises ValueError for a page without them."""
    before, mark, rest = page.partition(BEGIN)
    _, closing, after = rest.partition(END)
    if not mark or not closing:
        raise ValueError(f"{PAGE} has no place for the figures; expected a line {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + "\n" + "\n".join(_table(findings)) + "\n\n" + END + after


def _table(findings: Sequence[dict[str, Any]]) -> Iterator[str]:
    for part, rows in groupby(findings, key=lambda finding: finding["part"]):
        yield f"### {part[0].upper()}{part[1:]}\n"
        yield "| attack | what must hold | cases | failed | how they ended | seconds |"
        yield "|---|---|---:|---:|---|---:|"
        for finding in rows:
            end = f"not made: {finding['skipped']}" if "skipped" in finding else ended(finding)
            numbers = f"{finding['cases']:,} | {finding['failed']} | {end} | {finding['seconds']:,.0f} |"
            yield f"| `{finding['attack']}` | {finding['what']} | {numbers}"
        yield ""


def _number(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
