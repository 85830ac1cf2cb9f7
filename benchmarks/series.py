"""What the curve shows before it is drawn: a series per method and precision, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
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


def description(report: Report) -> str:
    """The curve in words, for those who do not see it."""
    rows = measured(report["results"])
    if not rows:
        return "No bundle was measured, so the plot is empty."
    points = "; ".join(
        f"{row['method']} {label_of(row)} {row['precision']}: "
        f"{row['bundle_bytes'] / 1e6:.1f} MB, MRR {mrr_of(row):.3f}"
        for row in rows
    )
    told = f"MRR on the {report['split']} split against bundle size on a logarithmic scale. {points}."
    published = "; ".join(
        f"{row.model} {row.layers} layers: {(row.float32_bytes or 0) / 1e6:.0f} MB, MRR {row.metrics['mrr']:.3f}"
        for row in reference.drawn(report)
    )
    return f"{told} Crosses, {reference.LABEL}, at {reference.PLACE}: {published}." if published else told


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
