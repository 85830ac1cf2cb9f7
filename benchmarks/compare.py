"""Two reports side by side: what moved by more than the noise, for each bundle that both have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pmd.benchmarks import gate
from pmd.benchmarks.case import Row
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.figures import Interval, flat, interval_of, is_time
from pmd.benchmarks.gate import Change, Condition
from pmd.benchmarks.machines import Pair, pair_of
from pmd.benchmarks.report import Report
from pmd.benchmarks.table import fraction, megabytes, three_digits

SCHEMA = "pmd-bench-compare/1"
BETTER, WORSE, WITHIN, SAME = "better", "worse", "within noise", "same"
UNJUDGED, UNKNOWN = "not judged", "unknown"
MOVED = (BETTER, WORSE)
MEMORY_PERCENT = 5.0
"""Peak memory of one bundle, measured twice on two cores, differed by up to 4.3 %."""


@dataclass(frozen=True)
class Figure:
    """A figure that is compared."""

    key: str
    name: str
    unit: str
    show: Callable[[float | None], str]
    less_is_better: bool = True


FIGURES = (
    Figure("query_ms.p50", "query p50", "ms", three_digits),
    Figure("query_ms.p95", "query p95", "ms", three_digits),
    Figure("query_ms.p99", "query p99", "ms", three_digits),
    Figure("batch_queries_per_second", "queries/s", "", three_digits, less_is_better=False),
    Figure("cold_start_ms", "cold start", "ms", three_digits),
    Figure("peak_rss_bytes", "peak memory", "MB", megabytes),
    Figure("bundle_bytes", "size", "MB", megabytes),
    Figure("metrics.mrr", "MRR", "", fraction, less_is_better=False),
)


def compare(
    a: Report, b: Report, conditions: Sequence[Condition] = (), *, noise_percent: float = 0.0
) -> dict[str, Any]:
    """What moved from report `a` to report `b`, ready for JSON.

    conditions: what fails, of the figures in `b` or of their change; every bundle of either report is held to
    them. noise_percent: the least noise of times to reckon with. Raises BenchError for reports of different
    datasets.
    """
    if a["dataset"] and b["dataset"] and a["dataset"] != b["dataset"]:
        raise BenchError(
            f"the reports are of different datasets ({a['dataset']}, {b['dataset']}); their figures do not compare"
        )
    pair = pair_of(a, b, noise_percent)
    before, after = ({row["bundle"]: row for row in report["results"]} for report in (a, b))
    names = list(dict.fromkeys([*after, *before]))
    bundles = [_bundle(name, before.get(name), after.get(name), pair) for name in names]
    verdicts = [figure["verdict"] for bundle in bundles for figure in bundle["figures"].values()]
    judged = [(name, _failures(before.get(name), after.get(name), pair, conditions)) for name in names]
    return {
        "schema": SCHEMA,
        "same_machine": pair.same_machine,
        "times_judged": pair.times_judged,
        "noise_percent": pair.noise_percent,
        "differences": list(pair.differences),
        "notes": list(pair.notes),
        "bundles": bundles,
        **{verdict: verdicts.count(verdict) for verdict in MOVED},
        "gate": gate.verdict(conditions, judged) if conditions else None,
    }


def change_percent(a: float | None, b: float | None) -> float | None:
    """How much larger `b` is than `a`, in percent of `a`; None where that is unknown or has no size."""
    if a is None or b is None or (a == 0 and b != 0):
        return None
    percent = 0.0 if a == b else 100 * (b / a - 1)
    return percent if math.isfinite(percent) else None


def _bundle(name: str, a: Row | None, b: Row | None, pair: Pair) -> dict[str, Any]:
    """What is known of one bundle in both reports; a bundle that only one has has no figures here."""
    return {
        "bundle": name,
        "in_a": a is not None,
        "in_b": b is not None,
        "error_a": a["error"] if a else None,
        "error_b": b["error"] if b else None,
        "noise_percent": pair.noise_of(a, b) if a and b else None,
        "figures": {figure.key: _figure(figure, a, b, pair) for figure in FIGURES if a and b},
    }


def _figure(figure: Figure, a: Row, b: Row, pair: Pair) -> dict[str, Any]:
    values = flat(a).get(figure.key), flat(b).get(figure.key)
    return {
        "a": values[0],
        "b": values[1],
        "change_percent": change_percent(*values),
        "interval_a": interval_of(a, figure.key),
        "interval_b": interval_of(b, figure.key),
        "verdict": _verdict(figure, a, b, pair),
    }


def _verdict(figure: Figure, a: Row, b: Row, pair: Pair) -> str:
    """One word on a figure: what moved is beyond the noise, and outside the intervals that the reports state."""
    one, two = flat(a).get(figure.key), flat(b).get(figure.key)
    if one is None or two is None or a["error"] or b["error"]:
        return UNKNOWN
    if not pair.judges(figure.key):
        return UNJUDGED
    if one == two:
        return SAME
    if _is_noise(one, two, _tolerance(figure.key, a, b, pair)):
        return WITHIN
    if _overlap(interval_of(a, figure.key), interval_of(b, figure.key)):
        return WITHIN
    return BETTER if (two < one) == figure.less_is_better else WORSE


def _tolerance(key: str, a: Row, b: Row, pair: Pair) -> float:
    """Percent by which a figure may differ where nothing changed; sizes and MRRs repeat exactly."""
    if is_time(key):
        return pair.noise_of(a, b) or 0.0
    return MEMORY_PERCENT if key == "peak_rss_bytes" else 0.0


def _is_noise(one: float, two: float, percent: float) -> bool:
    """Whether the smaller is no further below the larger than the noise: slower by a third is 4 to 3."""
    return min(one, two) >= max(one, two) * (1 - percent / 100)


def _overlap(one: Interval | None, two: Interval | None) -> bool:
    """Whether both intervals are known and share a point; an end that is unknown reaches as far as it likes."""
    if one is None or two is None:
        return False
    apart = (
        low is not None and high is not None and low > high for low, high in ((one[0], two[1]), (two[0], one[1]))
    )
    return not any(apart)


def _failures(a: Row | None, b: Row | None, pair: Pair, conditions: Sequence[Condition]) -> list[str]:
    if b is None:
        return ["is not in the second report, so nothing is known of it"]
    return gate.reasons(b, conditions, {c.key: _change(c.key, a, b, pair) for c in conditions if c.is_change})


def _change(key: str, a: Row | None, b: Row, pair: Pair) -> Change:
    """How far a figure moved, in percent, with a remark where the noise alone moves it as far."""
    if a is None or a["error"] is not None:
        return None, f"{'failed' if a else 'not'} in the first report"
    if not pair.judges(key):
        return None, f"its change is not judged ({pair.why_not(key)})"
    one, two = flat(a).get(key), flat(b).get(key)
    percent, tolerance = change_percent(one, two), _tolerance(key, a, b, pair)
    if one is None or two is None or percent is None:
        return None, "its change is unknown"
    within = tolerance and _is_noise(one, two, tolerance)
    return percent, f", within the noise of {three_digits(tolerance)} %" if within else ""
