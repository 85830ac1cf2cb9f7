"""Which bundle of a report to ship: the most accurate of those within the limits, and why not the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pmd.benchmarks.case import Row
from pmd.benchmarks.figures import flat, interval_of
from pmd.benchmarks.report import Report, mrr_of
from pmd.benchmarks.table import fraction, megabytes, percent, three_digits

SCHEMA = "pmd-bench-pick/1"
MRR = "metrics.mrr"


@dataclass(frozen=True)
class Limit:
    """A bound that a bundle can be held to."""

    option: str
    """Its name on the command line, without dashes before."""
    key: str
    name: str
    show: Callable[[float | None], str]
    unit: str = ""
    is_most: bool = True
    """Whether the figure may be at most the bound, rather than at least."""
    scale: float = 1.0
    """What one unit of the option is in units of the figure."""

    def fits(self, value: float | None, bound: float) -> bool:
        """Whether a figure is within the bound; what is unknown is not."""
        if value is None:
            return False
        return value <= bound * self.scale if self.is_most else value >= bound * self.scale

    def said(self, value: float) -> str:
        """A figure with its unit."""
        return f"{self.show(value)} {self.unit}".rstrip()

    def reason(self, value: float | None, bound: float) -> str:
        """Why a bundle is ruled out."""
        if value is None:
            return f"{self.name} is unknown"
        side = "over" if self.is_most else "under"
        shown, wanted = self.said(value), self.said(bound * self.scale)
        if shown == wanted:  # as close as that, every digit counts
            shown, wanted = f"{value / self.scale!r}", f"{bound!r}"
        return f"{self.name} {shown} is {side} {wanted}"

    def excess(self, value: float | None, bound: float) -> float:
        """How many times as far as allowed a figure goes: 1 is just within, infinite where it is unknown."""
        if value is None:
            return math.inf
        over, under = (value, bound * self.scale) if self.is_most else (bound * self.scale, value)
        return 1.0 if over <= under else (over / under if under else math.inf)


LIMITS = (
    Limit("max-mb", "bundle_bytes", "size", megabytes, "MB", scale=1e6),
    Limit("max-p50-ms", "query_ms.p50", "query p50", three_digits, "ms"),
    Limit("max-p95-ms", "query_ms.p95", "query p95", three_digits, "ms"),
    Limit("max-rss-mb", "peak_rss_bytes", "peak memory", megabytes, "MB", scale=1e6),
    Limit("max-cold-start-ms", "cold_start_ms", "cold start", three_digits, "ms"),
    Limit("min-mrr", MRR, "MRR", fraction, is_most=False),
    Limit("min-mrr-kept", "mrr_kept", "kept MRR", percent, is_most=False),
)
Bounds = Mapping[Limit, float]


def pick(report: Report, bounds: Bounds) -> dict[str, Any]:
    """The bundle to ship and why, ready for JSON.

    report: as `read_report` gives it. bounds: in the units of the options. `bundle` is None, and `nearest` says
    what comes closest, where nothing fits. MRRs within the bootstrap interval of the best one count as equal;
    then the smaller bundle is chosen, and of equally small ones the faster.
    """
    rows = report["results"]
    ruled_out = {row["bundle"]: why for row in rows if (why := _reasons(row, bounds))}
    fits = [row for row in rows if row["bundle"] not in ruled_out]
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "bundle": None,
        "why": None,
        "limits": {limit.option.replace("-", "_"): bound for limit, bound in bounds.items()},
        "fits": [row["bundle"] for row in fits],
        "passed_over": {},
        "ruled_out": ruled_out,
        "nearest": None,
    }
    if not fits:
        return found | {"nearest": _nearest(rows, bounds)}
    best = max(fits, key=lambda row: (mrr_of(row), _preference(row)))
    tied = [row for row in fits if _ties(row, best)]
    chosen = max(tied, key=_preference)
    passed = {row["bundle"]: _passed_over(row, chosen, best) for row in fits if row is not chosen}
    return found | {"bundle": chosen["bundle"], "why": _why(chosen, best, fits), "passed_over": passed}


def _reasons(row: Row, bounds: Bounds) -> list[str]:
    """Why a bundle is ruled out; empty where it fits."""
    if row["error"] is not None:
        return [f"could not be measured: {row['error']}"]
    values = flat(row)
    found = [
        limit.reason(values.get(limit.key), bound)
        for limit, bound in bounds.items()
        if not limit.fits(values.get(limit.key), bound)
    ]
    if not found and mrr_of(row) is None:
        found.append("MRR is unknown")
    return found


def _preference(row: Row) -> tuple[float, float, float]:
    """Larger is better among equally accurate bundles: small before fast before accurate."""
    unknown = math.inf
    size, p50 = row["bundle_bytes"], row["query_ms"]["p50"]
    return (-(unknown if size is None else size), -(unknown if p50 is None else p50), mrr_of(row))


def _ties(row: Row, best: Row) -> bool:
    """Whether a bundle is as accurate as the best one, as far as the triples of the split can tell."""
    interval = interval_of(best, MRR)
    lowest = interval[0] if interval and interval[0] is not None else mrr_of(best)
    return bool(mrr_of(row) >= min(lowest, mrr_of(best)))


def _why(chosen: Row, best: Row, fits: Sequence[Row]) -> str:
    if len(fits) == 1:
        return f"it alone fits; MRR {fraction(mrr_of(chosen))}"
    if chosen is best:
        return f"the best MRR, {fraction(mrr_of(best))}, of {len(fits)} that fit"
    equal = mrr_of(chosen) == mrr_of(best)
    interval = interval_of(best, MRR)
    reach = "" if equal or not interval else f", whose 95 % interval begins at {fraction(interval[0])}"
    told = f"MRR {fraction(mrr_of(chosen))} is as good as the best, {fraction(mrr_of(best))} of {best['bundle']}"
    return f"{told}{reach}; {_saving(chosen, best)}"


def _saving(chosen: Row, other: Row) -> str:
    """What makes the chosen one preferable to an equally accurate one."""
    if chosen["bundle_bytes"] != other["bundle_bytes"]:
        return f"it is smaller: {megabytes(chosen['bundle_bytes'])} MB, not {megabytes(other['bundle_bytes'])} MB"
    p50s = chosen["query_ms"]["p50"], other["query_ms"]["p50"]
    return f"it is as small and faster: {three_digits(p50s[0])} ms, not {three_digits(p50s[1])} ms"


def _passed_over(row: Row, chosen: Row, best: Row) -> str:
    """Why a bundle that fits was not chosen."""
    if not _ties(row, best):
        return f"MRR {fraction(mrr_of(row))} is below what counts as equal to {fraction(mrr_of(best))}"
    if row["bundle_bytes"] != chosen["bundle_bytes"]:
        return f"equal MRR ({fraction(mrr_of(row))}), but larger: {megabytes(row['bundle_bytes'])} MB"
    return (
        f"equal MRR ({fraction(mrr_of(row))}) and size, but not faster: {three_digits(row['query_ms']['p50'])} ms"
    )


def _nearest(rows: Sequence[Row], bounds: Bounds) -> dict[str, Any] | None:
    """The bundle whose worst excess is smallest, and by how much it misses; None where nothing was measured."""
    measured = [row for row in rows if row["error"] is None and mrr_of(row) is not None]
    if not measured:
        return None
    row = min(measured, key=lambda row: (_worst(row, bounds), -mrr_of(row)))
    worst = _worst(row, bounds)
    return {
        "bundle": row["bundle"],
        "misses": _reasons(row, bounds),
        "times_the_limit": worst if math.isfinite(worst) else None,
    }


def _worst(row: Row, bounds: Bounds) -> float:
    values = flat(row)
    return max((limit.excess(values.get(limit.key), bound) for limit, bound in bounds.items()), default=1.0)


def lines(found: Mapping[str, Any]) -> list[str]:
    """The choice for people: what to ship and why, then the others."""
    nearest = found["nearest"]
    if found["bundle"]:
        told = [f"ship: {found['bundle']}", f"why: {found['why']}"]
    elif nearest:
        told = ["ship: nothing fits", f"nearest: {nearest['bundle']}: {'; '.join(nearest['misses'])}"]
    else:
        told = ["ship: nothing was measured"]
    told += [f"passed over: {name}: {why}" for name, why in found["passed_over"].items()]
    return [*told, *(f"ruled out: {name}: {'; '.join(why)}" for name, why in found["ruled_out"].items())]
