"""Peers as people read them: in the terminal, on the page and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from pmd.benchmarks.case import Row
from pmd.benchmarks.peers.registry import PEERS
from pmd.benchmarks.report import label_of
from pmd.benchmarks.table import UNKNOWN, aligned, percent, three_digits

HEADINGS = (
    "bundle",
    "precision",
    "beside",
    "times as fast",
    "95 % interval",
    "by processor time",
    "its p50",
    "bundle's p50",
    "same answers",
)
TEXT_COLUMNS = 3
Cell: TypeAlias = tuple[str, Any]
"""What is shown, and what it sorts by."""


def cells(rows: Sequence[Row]) -> list[list[Cell]]:
    """A line of cells under HEADINGS for each peer that was measured beside a bundle."""
    return [_cells(row, name, entry) for row in rows for name, entry in _entries(row) if entry["skipped"] is None]


def skipped(rows: Sequence[Row]) -> list[tuple[str, str, int]]:
    """Peer, reason, and how many bundles it was skipped for."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, entry in _entries(row):
            if entry["skipped"] is not None:
                key = (name, str(entry["skipped"]))
                counts[key] = counts.get(key, 0) + 1
    return [(name, why, count) for (name, why), count in counts.items()]


def lines(rows: Sequence[Row]) -> list[str]:
    """The same for a terminal, an empty line first; nothing where no peer was named."""
    made, left_out = [[shown for shown, _ in line] for line in cells(rows)], skipped(rows)
    table = aligned([HEADINGS, *made], TEXT_COLUMNS) if made else []
    told = [f"skipped: {name}: {why}{_times(count)}" for name, why, count in left_out]
    return ["", *table, *told] if table or told else []


def legend(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Name, what it is, and versions of each peer that was measured."""
    found: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        for name, entry in _entries(row):
            if entry["skipped"] is None:
                versions = ", ".join(f"{key} {value or UNKNOWN}" for key, value in entry["versions"].items())
                found[name] = (name, PEERS[name].what if name in PEERS else UNKNOWN, versions)
    return list(found.values())


def _entries(row: Row) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from (row.get("against") or {}).items()


def _cells(row: Row, name: str, entry: dict[str, Any]) -> list[Cell]:
    bundle, precision = label_of(row) if row["stage"] else str(row["bundle"]), row["precision"] or UNKNOWN
    low, high = entry["interval"]
    between = UNKNOWN if low is None or high is None else f"{three_digits(low)} to {three_digits(high)}"
    return [
        (bundle, bundle),
        (precision, precision),
        (name, name),
        (f"{three_digits(entry['ratio'])} ×", entry["ratio"]),
        (between, low),
        (f"{three_digits(entry['ratio_cpu'])} ×", entry["ratio_cpu"]),
        *((f"{three_digits(entry[key]['p50'])} ms", entry[key]["p50"]) for key in ("query_ms", "bundle_query_ms")),
        (percent(entry["shared_top"]), entry["shared_top"]),
    ]


def _times(count: int) -> str:
    return f" ({count} bundles)" if count > 1 else ""
