"""What a curve shows before it is drawn: a series per method and precision, the front, and the same in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pmd.benchmarks import reference
from pmd.benchmarks.case import Row
from pmd.benchmarks.report import METHODS, PRECISIONS, TEACHER, Report, label_of, measured, mrr_of, order_in

BASELINE = "baseline"
BASELINE_COLOUR = "#6a7078"
SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b07d00")
"""After Okabe and Ito's palette for every common colour blindness; the fifth is darkened to read."""


@dataclass(frozen=True)
class Series:
    """Points of one method and precision, by rising size."""

    method: str
    precision: str
    rows: tuple[Row, ...]
    colour: str

    @property
    def name(self) -> str:
        """As the legend calls it."""
        return f"{self.method} {self.precision}"

    @property
    def grades(self) -> tuple[Row, ...]:
        """Every point but the teacher's."""
        return tuple(row for row in self.rows if row["stage"] != TEACHER)

    @property
    def is_baseline(self) -> bool:
        """Whether these are models trained alone, without a teacher."""
        return self.method == BASELINE


@dataclass(frozen=True)
class Cost:
    """What a bundle costs: the horizontal axis of a curve, and how it is worded."""

    name: str
    """One word: size or latency."""
    axis: str
    of: Callable[[Row], float]
    """The cost of a measured row, in `unit`."""
    unit: str
    shown: Callable[[float], str]

    @property
    def title(self) -> str:
        """What a curve over this cost is called."""
        return f"Accuracy against {self.name}"


SIZE = Cost(
    "size",
    "bundle size, MB of a million bytes (log scale)",
    lambda row: float(row["bundle_bytes"]) / 1e6,
    "MB",
    lambda value: f"{value:.1f}",
)
LATENCY = Cost(
    "latency",
    "median time of a single query, ms (log scale)",
    lambda row: float(row["query_ms"]["p50"]),
    "ms",
    lambda value: f"{value:.3g}",
)


def front(rows: Sequence[Row], cost: Cost) -> list[Row]:
    """The measured rows that no other beats in both cost and MRR, by rising cost; of equals, one."""
    best: list[Row] = []
    for row in sorted(measured(rows), key=lambda row: (cost.of(row), -mrr_of(row))):
        if not best or mrr_of(row) > mrr_of(best[-1]):
            best.append(row)
    return best


def name_of(row: Row) -> str:
    """A row's bundle for people: grade 4 int8, with its method where that is not pmd."""
    method = "" if row["method"] in (None, "pmd") else f", {row['method']}"
    model = label_of(row) if row["stage"] else row["bundle"]
    return f"{model} {row['precision'] or ''}".rstrip() + method


def told(row: Row, cost: Cost) -> str:
    """One point of a curve in words."""
    return f"{name_of(row)}: {cost.shown(cost.of(row))} {cost.unit}, MRR {mrr_of(row):.3f}"


def description(report: Report, cost: Cost = SIZE) -> str:
    """The curve in words, for those who do not see it."""
    rows = measured(report["results"])
    if not rows:
        return "No bundle was measured, so the plot is empty."
    words = f"MRR on the {report['split']} split against {cost.axis}. {'; '.join(told(row, cost) for row in rows)}."
    best = "; ".join(name_of(row) for row in front(rows, cost))
    words = f"{words} On the Pareto front: {best}."
    published = "; ".join(
        f"{row.model} {row.layers} layers: {(row.float32_bytes or 0) / 1e6:.0f} MB, MRR {row.metrics['mrr']:.3f}"
        for row in (reference.drawn(report) if cost is SIZE else [])
    )
    return f"{words} Crosses, {reference.LABEL}, at {reference.PLACE}: {published}." if published else words


def series_of(rows: Sequence[Row]) -> list[Series]:
    """Series of the measured rows in a fixed order.

    Colour tells methods apart where there are several, otherwise precisions; the baseline is always grey.
    """
    known = measured(rows)
    names = sorted(
        {(row["method"], row["precision"]) for row in known},
        key=lambda name: (order_in(METHODS, name[0]), order_in(PRECISIONS, name[1])),
    )
    distilled = list(dict.fromkeys(method for method, _ in names if method != BASELINE))
    keys = distilled if len(distilled) > 1 else list(dict.fromkeys(p for m, p in names if m != BASELINE))
    made = []
    for method, precision in names:
        key = method if len(distilled) > 1 else precision
        colour = BASELINE_COLOUR if method == BASELINE else SERIES_COLOURS[keys.index(key) % len(SERIES_COLOURS)]
        mine = [row for row in known if (row["method"], row["precision"]) == (method, precision)]
        made.append(Series(method, precision, tuple(sorted(mine, key=lambda row: row["bundle_bytes"])), colour))
    return made
