"""What the page shows of a report beside its tables: filters, latencies as boxes, relations, growth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pmd.benchmarks.case import Row
from pmd.benchmarks.report import METHODS, PRECISIONS, label_of, measured, order_in
from pmd.benchmarks.series import name_of
from pmd.benchmarks.table import three_digits

INVERSE = "inverse "
"""Before a relation's id where heads are asked for."""
ROUND = (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10)


def filters(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Groups of buttons, each `title`, `key` (of the rows' data) and `values`; a group of one value is left out."""
    groups = (
        ("Model", "model", list(dict.fromkeys(label_of(row) for row in rows))),
        ("Precision", "precision", _known(PRECISIONS, (row["precision"] for row in rows))),
        ("Method", "method", _known(METHODS, (row["method"] for row in rows))),
    )
    return [{"title": title, "key": key, "values": values} for title, key, values in groups if len(values) > 1]


def _known(order: Sequence[str], names: Iterable[str | None]) -> list[str]:
    return sorted({name for name in names if name}, key=lambda name: order_in(order, name))


def round_above(value: float) -> float:
    """The nearest round number that is at least `value`, which is positive."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in ROUND if step * power >= value), 10 * power)


def boxes(rows: Sequence[Row]) -> dict[str, Any]:
    """Latencies of every measured row on one scale: `top` (ms) and `rows` with percents of it.

    Of each: `row`, `name`, `p50`, `p95`, `p99` (percents), `interval` of p50 in words and `words` for all of it.
    """
    known = [row for row in measured(rows) if row["query_ms"]["p99"]]
    if not known:
        return {"top": 0.0, "rows": []}
    top = round_above(max(row["query_ms"]["p99"] for row in known))
    return {"top": top, "rows": [_box(row, top) for row in known]}


def _box(row: Row, top: float) -> dict[str, Any]:
    times = row["query_ms"]
    shares = {name: round(100 * times[name] / top, 2) for name in ("p50", "p95", "p99")}
    told = ", ".join(f"{name} {three_digits(times[name])} ms" for name in shares)
    low, high = (row.get("intervals") or {}).get("query_ms.p50") or (None, None)
    interval = "" if low is None or high is None else f"{three_digits(low)} to {three_digits(high)}"
    return {"row": row, "name": name_of(row), **shares, "interval": interval, "words": f"{name_of(row)}: {told}"}


@dataclass(frozen=True)
class Relation:
    """One relation under one bundle: questions of both directions, MRR of each, and Hits."""

    name: str
    queries: int
    mrr: float
    tails: float | None
    heads: float | None
    first: float
    ten: float
    change: float | None
    """MRR less that of the fp32 bundle of the same model; None where there is none or it is that bundle."""


def drilldown(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """`row`, `name`, `relations` (most asked first), `hardest` and `categories` of each row that has its parts."""
    known = [row for row in measured(rows) if (row["analysis"] or {}).get("by_relation")]
    return [_parts(row, _sibling(row, known)) for row in known]


def _sibling(row: Row, rows: Sequence[Row]) -> Row | None:
    """The fp32 row of the same model, unless it is this one."""
    same = [other for other in rows if (other["method"], other["stage"]) == (row["method"], row["stage"])]
    return next((other for other in same if other["precision"] == "fp32" and other is not row), None)


def _parts(row: Row, sibling: Row | None) -> dict[str, Any]:
    before = {one.name: one.mrr for one in relations_of(sibling)} if sibling else {}
    relations = relations_of(row, before)
    often = [one for one in relations if one.queries >= 10] or relations
    return {
        "row": row,
        "name": name_of(row),
        "relations": relations,
        "hardest": min(often, key=lambda one: one.mrr),
        "categories": (row["analysis"].get("by_category") or {}).items(),
        "compared": bool(before),
    }


def relations_of(row: Row, before: Mapping[str, float] | None = None) -> list[Relation]:
    """Relations of a row by falling number of questions; `before`: the MRRs that `change` is taken from."""
    parts: Mapping[str, Mapping[str, Any]] = row["analysis"]["by_relation"]
    names = dict.fromkeys(name.removeprefix(INVERSE) for name in parts)
    found = [_relation(name, parts.get(name), parts.get(INVERSE + name), before or {}) for name in names]
    return sorted(found, key=lambda one: (-one.queries, one.name))


def _relation(
    name: str,
    tails: Mapping[str, Any] | None,
    heads: Mapping[str, Any] | None,
    before: Mapping[str, float],
) -> Relation:
    sides = [side for side in (tails, heads) if side]
    queries = sum(side["queries"] for side in sides)

    def mean(key: str) -> float:
        return float(sum(side[key] * side["queries"] for side in sides) / queries)

    mrr = mean("mrr")
    return Relation(
        name,
        queries,
        mrr,
        tails["mrr"] if tails else None,
        heads["mrr"] if heads else None,
        mean("hits@1"),
        mean("hits@10"),
        mrr - before[name] if name in before else None,
    )


@dataclass(frozen=True)
class Growth:
    """Latency against the number of entities for one bundle, and the fitted line."""

    row: Row
    points: tuple[tuple[int, float], ...]
    """Entities and milliseconds of a query, by rising number."""
    fixed_ms: float | None
    ms_per_100k: float | None
    synthetic: bool

    @property
    def name(self) -> str:
        """The bundle's."""
        return name_of(self.row)

    @property
    def fitted(self) -> bool:
        """Whether there is a line."""
        return self.fixed_ms is not None and self.ms_per_100k is not None

    def line(self, entities: float) -> float:
        """Milliseconds by the fitted line."""
        return (self.fixed_ms or 0.0) + (self.ms_per_100k or 0.0) * entities / 1e5

    def told(self) -> str:
        """Its points and line in words."""
        points = "; ".join(f"{count:,} entities {three_digits(ms)} ms" for count, ms in self.points)
        line = (
            f"{three_digits(self.fixed_ms)} ms and {three_digits(self.ms_per_100k)} ms for every 100,000 entities"
        )
        return f"{self.name}: {points}{f'; fitted line {line}' if self.fitted else ''}."


def growths(rows: Sequence[Row]) -> list[Growth]:
    """Growth of each row that has at least two points of it."""
    made = [_growth(row) for row in measured(rows) if row.get("growth")]
    return [growth for growth in made if len(growth.points) > 1]


def _growth(row: Row) -> Growth:
    given: Mapping[str, Any] = row["growth"]
    points = sorted((point["entities"], point["query_ms"]) for point in given.get("points") or ())
    fit = given.get("fit") or {}
    synthetic = bool(given.get("synthetic"))
    return Growth(row, tuple(points), fit.get("ms"), fit.get("ms_per_100k"), synthetic)


def growth_table(found: Sequence[Growth]) -> dict[str, Any]:
    """The same as a table: `sizes`, and `rows` with `growth` and its time or None for each size."""
    sizes = sorted({count for growth in found for count, _ in growth.points})
    rows = [{"growth": growth, "times": [dict(growth.points).get(size) for size in sizes]} for growth in found]
    return {"sizes": sizes, "rows": rows}


def throughput(rows: Sequence[Row]) -> dict[str, Any]:
    """Questions a second by batch size: `sizes`, and `rows` with `row`, `name` and a rate or None for each size."""
    known = [row for row in measured(rows) if row.get("batches")]
    rates = [{one["size"]: one["queries_per_second"] for one in row["batches"]} for row in known]
    sizes = sorted({size for rate in rates for size in rate})
    told = [
        {"row": row, "name": name_of(row), "rates": [rate.get(size) for size in sizes]}
        for row, rate in zip(known, rates, strict=True)
    ]
    return {"sizes": sizes, "rows": told}


def disturbed(rows: Sequence[Row]) -> str:
    """Which bundles' measurement was disturbed, as their rows say; empty for none."""
    known = measured(rows)
    names = [name_of(row) for row in known if row.get("disturbed")]
    return "every bundle" if len(names) == len(known) > 1 else "; ".join(names)


def pairs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Paired tests that the rows hold: `row`, `name`, `beside` (the other's name) and the `test` itself."""
    names = {row["bundle"]: name_of(row) for row in rows}
    return [
        {"row": row, "name": name_of(row), "beside": names.get(test["bundle"], test["bundle"]), "test": test}
        for row in measured(rows)
        for test in (row.get("against_fp32"), row.get("against_teacher"))
        if test
    ]
