"""What the edge runtime is held to, and the report as lines for people reading a terminal.

The figures wanted are those of a grade of 3 layers in int8, MiniLM's width, 40,943 entities, one thread; of another
bundle they are shown beside its own figures all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Parts = Mapping[str, Any]


class Target(NamedTuple):
    """A figure of a part, by its path in the part's JSON, and the bound it is held to."""

    name: str
    part: str
    path: tuple[str, ...]
    bound: float
    at_most: bool = True
    unit: str = "ms"


VNNI_MS, AVX2_MS = 1.5, 3.0
VNNI = {"avx512_vnni", "avx_vnni", "asimddp"}
TARGETS = (
    Target("faster than torch and numpy", "usual", ("times", "torch"), 6, at_most=False, unit="times"),
    Target("faster than ONNX and faiss", "usual", ("times", "onnx"), 3, at_most=False, unit="times"),
    Target("outside onnxruntime, p50", "overhead", ("outside_ms", "p50"), 0.25),
    Target("start to first answer", "cold", ("cold_start_ms",), 600),
    Target("peak memory", "memory", ("peak_rss_mib",), 150, unit="MiB"),
    Target("memory above its first sample", "memory", ("rise_mib",), 5, unit="MiB"),
    Target("memory below its first sample", "memory", ("fall_mib",), 5, unit="MiB"),
    Target("large table: load", "million", ("search", "load_seconds"), 0.2, unit="s"),
    Target("large table: speed of reading", "million", ("search", "ratio"), 0.6, at_most=False, unit="of it"),
    Target("HTTP requests a second", "http", ("requests_per_second",), 300, at_most=False, unit="/s"),
    Target("HTTP, p99", "http", ("ms", "p99"), 100),
)


def targets_of(parts: Parts, flags: list[str] | None) -> list[dict[str, Any]]:
    """Every target with what was found (null where its part was not measured) and whether it is met.

    flags: the processor's instruction sets, which decide how fast an answer has to be; None where unknown.
    """
    answer_ms = VNNI_MS if VNNI & set(flags or ()) else AVX2_MS
    wanted = (Target("text in to answers out, p50", "answers", ("query_ms", "p50"), answer_ms), *TARGETS)
    return [_row(target, _found(parts.get(target.part), target.path)) for target in wanted]


def lines_of(targets: list[dict[str, Any]], parts: Parts) -> Iterator[str]:
    """Aligned lines: every target measured, then what stands beside it."""
    for row in targets:
        if row["found"] is not None:
            sign = "≤" if row["at_most"] else "≥"
            said = "met" if row["met"] else "missed"
            yield f"{row['name']:<32}{row['found']:>10,.3f} {row['unit']:<6} {sign} {row['bound']:<7,g} {said}"
    for side, figures in (_found(parts.get("usual"), ("sides",)) or {}).items():
        yield f"{side:<32}{figures['query_ms']['p50']:>10.3f} ms, p50"
    for row in _found(parts.get("answers"), ("bundles",)) or []:
        yield f"{row['bundle']:<32}{row['query_ms']['p50']:>10.3f} ms, p50"
    for row in _found(parts.get("million"), ("ann", "searches")) or []:
        yield (
            f"{'usearch, expansion ' + str(row['expansion_search']):<32}{row['query_ms']['p50']:>10.3f} ms, p50; "
            f"recall {row['recall_at_10']:.3f}"
        )


def _row(target: Target, found: float | None) -> dict[str, Any]:
    met = None if found is None else (found <= target.bound if target.at_most else found >= target.bound)
    kept = {key: value for key, value in target._asdict().items() if key not in ("part", "path")}
    return {**kept, "figure": ".".join((target.part, *target.path)), "found": found, "met": met}


def _found(part: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        part = part.get(name) if isinstance(part, Mapping) else None
    return part
