"""Figures of a row by dotted keys, such as query_ms.p50: which there are, and what a mistyped one may mean."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from pmd.benchmarks.case import Row
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.schema import Schema, finite, report_schema, resolved

Interval: TypeAlias = tuple[float | None, float | None]
"""Low and high end; None where that end is unknown."""

SUGGESTIONS = 3
TIMES = (
    *("query_ms.", "batch_queries_per_second", "cold_start", "evaluate_seconds", "cores_busy"),
    *("speedup.", "against."),
)
"""Beginnings of the keys whose figures depend on the machine and on what else it does."""


def flat(row: Row) -> dict[str, float | None]:
    """Every figure of a row by its dotted key, unknown ones as None; names and lists are left out."""
    return dict(_flat(row, ""))


def _flat(value: Any, key: str) -> Iterator[tuple[str, float | None]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    elif value is None or finite(value):
        yield key, value


def is_time(key: str) -> bool:
    """Whether a figure is a time, or made of times."""
    return key.startswith(TIMES)


def interval_of(row: Row, key: str) -> Interval | None:
    """95 % interval that the report states for a figure; None where it states none.

    MRR's is the bootstrap over triples; a cold start's is the range of its runs, where it had several; that of a
    ratio to a peer the bootstrap over rounds.
    """
    if key == "cold_start_ms":
        runs = row["cold_start_runs_ms"] or []
        return (min(runs), max(runs)) if len(runs) > 1 else None
    group, _, rest = key.partition(".")
    if group in ("speedup", "against"):
        peer = rest if group == "speedup" else rest.removesuffix(".ratio")
        ends = ((row.get("against") or {}).get(peer) or {}).get("interval")
        return (ends[0], ends[1]) if ends else None
    stated = (row["intervals"] or {}).get(key)
    if key.startswith("metrics."):
        stated = ((row["analysis"] or {}).get("interval") or {}).get(key.removeprefix("metrics."))
    return (stated[0], stated[1]) if stated else None


def check_key(key: str, rows: Iterable[Row] = ()) -> None:
    """Raise BenchError, with the nearest keys, unless reports may have the figure or one of `rows` does."""
    exact, prefixes = _known()
    if key in exact or any(key.startswith(prefix) and key != prefix for prefix in prefixes):
        return
    known = exact.union(*(flat(row) for row in rows))
    if key not in known:
        near = ", ".join(nearest(key, known)) or "query_ms.p50, bundle_bytes, metrics.mrr"
        raise BenchError(f"{key!r} is no figure of a report; near it: {near}")


def nearest(key: str, known: Iterable[str]) -> list[str]:
    """Up to three keys that may have been meant: those that end in it, contain it, or are spelled like it."""
    ordered = sorted(known, key=lambda name: (name.count("."), len(name), name))
    typed = key.lower()
    ends = [name for name in ordered if name.rpartition(".")[2] == typed]
    inside = [name for name in ordered if len(typed) > 1 and typed in name]
    alike = difflib.get_close_matches(typed, ordered, n=SUGGESTIONS, cutoff=0.6)
    return list(dict.fromkeys([*ends, *alike, *inside]))[:SUGGESTIONS]


@functools.cache
def _known() -> tuple[frozenset[str], frozenset[str]]:
    """Dotted keys of the figures that the schema names, and prefixes below which any name may stand."""
    row = report_schema()["$defs"]["row"]
    found = list(_leaves(row, ""))
    exact = frozenset(key for key, is_open in found if not is_open)
    return exact, frozenset(key for key, is_open in found if is_open)


def _leaves(schema: Schema, key: str) -> Iterator[tuple[str, bool]]:
    """(key, False) of every number, (prefix, True) of every object with names of its own."""
    for part in schema.get("anyOf", [schema]):
        part = resolved(part)
        for name, inner in part.get("properties", {}).items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
        if part.get("additionalProperties"):
            yield f"{key}.", True
        if {"number", "integer"} & {*_kinds(part)}:
            yield key, False


def _kinds(schema: Schema) -> list[str]:
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else list(kinds)
