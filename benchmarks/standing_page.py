"""docs/benchmarks.md, made from the figures of the standing set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pmd.benchmarks.report import label_of
from pmd.benchmarks.sheets import code_block, markdown_table, plain_text
from pmd.benchmarks.table import UNKNOWN, fraction, megabytes, percent, three_digits

Standing: TypeAlias = dict[str, Any]
"""What `pmd.benchmarks.standing` keeps."""

BUNDLES = (
    *("model", "method", "precision", "size, MB", "p50, ms", "95 %", "p95, ms", "cold start, ms", "peak, MB"),
    *("private, MB", "MRR", "kept", "against fp32", "disturbed"),
)
TEXTS = 3
LEGEND = (
    "95 %: half the interval of p50, of p50. Private: memory written and shared with nobody. Kept: of the same "
    "grade's MRR in torch. Against fp32: MRR less that of the same grade's fp32 bundle, by pairs. Disturbed: "
    "others took the machine while the bundle was timed, so its times may be too long. MB is a million bytes; "
    f"{UNKNOWN} is unknown."
)
GROWN = (
    "Median milliseconds from text to ten best: real questions, random unit vectors in the bundle's kind of table."
)


def page(standing: Standing) -> str:
    """The page, Markdown; the same figures give the same bytes."""
    rows = standing["results"]
    measured = [row for row in rows if row["error"] is None]
    parts = [
        "# Benchmarks of the standing set",
        "Made by `make bench` from [its figures](../benchmarks/results/cpu/standing.json), not by hand. How each "
        "is measured: [benchmarks/README.md](../benchmarks/README.md).",
        markdown_table(("setting", "value"), _setting(standing), 2),
        *_warning(measured),
        f"## Bundles of {plain_text(standing['dataset'] or 'unknown data')}",
        markdown_table(BUNDLES, map(_bundle, measured), TEXTS),
        LEGEND,
    ]
    failed = [f"- {plain_text(row['bundle'])}: {plain_text(row['error'])}" for row in rows if row["error"]]
    parts += ["### Not measured", "\n".join(failed)] if failed else []
    parts += _throughput(measured) + _growth(measured) + _serving(standing["serving"])
    return "\n\n".join([*parts, "## To repeat it", code_block("make demo\nmake bench")]) + "\n"


def _warning(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to think of the times, where others took the machine."""
    disturbed = sum(bool(row["disturbed"]) for row in rows)
    if not disturbed:
        return []
    return [
        f"**Others took the machine while {disturbed} of {len(rows)} bundles were timed.** Their times are upper "
        "bounds; run `make bench` on a quiet machine for better ones. Sizes, memory and MRR do not depend on it."
    ]


def _setting(standing: Standing) -> Iterable[Sequence[str]]:
    machine = standing["machine"]
    commit = f"{(machine['commit'] or 'unknown')[:12]}{', with changes' if machine['modified'] else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    noise = machine["calibration"]["slowest_median_percent"]
    yield "date", standing["started_at"]
    yield "commit", commit
    yield "processor", f"{plain_text(machine['cpu'] or 'unknown')}, {machine['cores_available']} cores"
    yield "instruction sets", plain_text(", ".join(machine["flags"] or []) or UNKNOWN)
    yield "memory", f"{megabytes(machine['ram_bytes'])} MB"
    yield (
        "container limits",
        plain_text(json.dumps(machine["container_limits"])) if machine["container_limits"] else "none",
    )
    yield "system", plain_text(machine["os"])
    yield "versions", plain_text(versions)
    yield "threads", str(standing["threads"])
    yield (
        "noise",
        f"{three_digits(noise)} % between calibrations; load {three_digits(machine['load_average'])} before",
    )
    yield "took", f"{standing['seconds']:.0f} s{' (a first look)' if standing['quick'] else ''}"


def _bundle(row: Mapping[str, Any]) -> list[str]:
    paired, half = row["against_fp32"], (row["repeats"] or {}).get("p50_half_width_percent")
    return [
        *_names(row),
        megabytes(row["bundle_bytes"]),
        three_digits(row["query_ms"]["p50"]),
        UNKNOWN if half is None else f"± {half:.1f} %",
        three_digits(row["query_ms"]["p95"]),
        three_digits(row["cold_start_ms"]),
        megabytes(row["peak_rss_bytes"]),
        megabytes(row["private_dirty_bytes"]),
        fraction(row["mrr"]),
        percent(row["mrr_kept"]),
        UNKNOWN if paired is None else f"{paired['difference']:+.4f} (p {paired['p_value']:.3f})",
        {True: "yes", False: "no", None: UNKNOWN}[row["disturbed"]],
    ]


def _names(row: Mapping[str, Any]) -> list[str]:
    return [plain_text(str(value)) for value in (label_of(dict(row)), row["method"], row["precision"])]


def _throughput(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [row for row in rows if row["batches"]]
    if not told:
        return []
    sizes = [batch["size"] for batch in told[0]["batches"]]
    lines = [[*_names(row), *(three_digits(b["queries_per_second"]) for b in row["batches"])] for row in told]
    headings = ("model", "method", "precision", *map(str, sizes))
    return ["## Questions a second, by batch size", markdown_table(headings, lines, TEXTS)]


def _growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [row for row in rows if row["growth"]]
    sizes = sorted({point["entities"] for row in told for point in row["growth"]["points"]})
    if not sizes:
        return []
    lines = []
    for row in told:
        times = {point["entities"]: point["query_ms"] for point in row["growth"]["points"]}
        line = row["growth"]["fit"] or {}
        fitted = (three_digits(line.get(name)) for name in ("ms", "ms_per_100k"))
        lines.append([*_names(row), *(three_digits(times.get(size)) for size in sizes), *fitted])
    headings = ("model", "method", "precision", *(f"{size:,}" for size in sizes), "line at 0", "per 100,000")
    return [
        "## Latency, by entities",
        markdown_table(headings, lines, TEXTS),
        GROWN,
    ]


def _serving(serving: Mapping[str, Any]) -> list[str]:
    lines = [
        [plain_text(row["name"]), three_digits(row["found"]), row["unit"], f"{row['noise_percent']:.0f} %"]
        for row in serving["figures"]
    ]
    if not lines:
        return []
    named = ", ".join(map(plain_text, serving["bundles"])) or UNKNOWN
    return [f"## The edge runtime: {named}", markdown_table(("figure", "found", "unit", "noise"), lines, 1)]
