"""Latency against the number of entities, drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pmd.benchmarks import curve, labels
from pmd.benchmarks.panels import Growth
from pmd.benchmarks.series import SERIES_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = 60
PLOT_INCHES, LEGEND_INCHES = 3.2, 0.22
MARKERS = "os^DvP*Xphd<>"
UNITS = {1e6: " M", 1e3: " k", 1.0: ""}


def svg(growths: Sequence[Growth]) -> bytes:
    """Points and fitted line of each bundle on logarithmic axes, as SVG; the same growths give the same bytes."""
    return curve.saved(lambda: _figure(growths), format="svg", metadata=curve.PLAIN_SVG)


def _figure(growths: Sequence[Growth]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    legend = LEGEND_INCHES * math.ceil(len(growths) / 2)
    height = PLOT_INCHES + legend
    figure = Figure(figsize=(4.4, height))
    axes = figure.add_axes((0.15, (legend + 0.55) / height, 0.82, (PLOT_INCHES - 0.7) / height))
    axes.set_xscale("log")
    axes.set_yscale("log")
    curve.dress(axes, "entities (log scale); dashes: fitted", "one query, ms (log scale)")
    for index, growth in enumerate(growths):
        _plot(axes, growth, SERIES_COLOURS[index % len(SERIES_COLOURS)], MARKERS[index % len(MARKERS)])
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_minor_locator(NullLocator())
        axis.set_major_locator(FixedLocator(labels.round_numbers(*limits)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": curve.INK, "columnspacing": 1.2}
    figure.legend(loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=2, **look)
    return figure


def _plot(axes: Axes, growth: Growth, colour: str, marker: str) -> None:
    counts, times = zip(*growth.points, strict=True)
    axes.plot(counts, times, marker, color=colour, markersize=7, zorder=3, label=growth.name)
    if growth.fitted:
        ratio = counts[-1] / counts[0]
        along = [counts[0] * ratio ** (step / STEPS) for step in range(STEPS + 1)]
        line = [growth.line(count) for count in along]
        axes.plot(along, line, color=colour, linewidth=1.3, linestyle=(0, (4, 2.5)))


def _short(count: float) -> str:
    """A count as an axis says it: 500, 10 k, 1 M."""
    power = next((power for power in UNITS if count >= power), 1.0)
    return f"{count / power:g}{UNITS[power]}"
