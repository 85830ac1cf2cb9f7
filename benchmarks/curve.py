"""The accuracy-versus-size curve: MRR against bundle size, one series per method and precision.

Drawn with matplotlib's objects and no pyplot, so nothing global is touched; the same rows give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pmd.benchmarks import labels, reference
from pmd.benchmarks.case import Row
from pmd.benchmarks.reference import Reference
from pmd.benchmarks.report import TEACHER, Report, mrr_of
from pmd.benchmarks.series import Series, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spot: TypeAlias = tuple[float, float]
"""Size in MB and MRR."""

INK, MUTED, GRID, SURFACE, FRONT = "#1c1e21", "#5b6168", "#dfe2e6", "#ffffff", "#c9cdd3"
MARKERS = {"fp32": "o", "fp16": "s", "int8": "^", "int8-static": "D", "int4": "v"}
OTHER_MARKER = "P"
READING = "Numbers at points: grade (layers). Up and to the left is better."
TITLE_INCHES = 0.8
LABEL_POINTS = 9.5


@dataclass(frozen=True)
class Frame:
    """The axes and the room beside them, in inches."""

    left: float
    width: float
    height: float
    right: float


WIDE = Frame(left=0.72, width=5.7, height=3.6, right=2.35)
NARROW = Frame(left=0.62, width=3.65, height=3.3, right=0.13)
"""For phones, with the legend below."""


def svg(report: Report, *, narrow: bool = False, titled: bool = True) -> bytes:
    """The curve as SVG; the same report gives the same bytes. A page brings a title of its own."""
    return _drawn(report, narrow, titled, format="svg", metadata={"Date": None, "Creator": None})


def png(report: Report) -> bytes:
    """The curve as PNG, 160 dots per inch."""
    return _drawn(report, False, True, format="png", dpi=160, metadata={"Software": None})


def _drawn(report: Report, narrow: bool, titled: bool, **saving: Any) -> bytes:
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Readers' own matplotlibrc must not change the picture; the salt makes the ids of the SVG repeat.
    settings = {"svg.hashsalt": "pmd-bench", "svg.fonttype": "path", "path.simplify": False}
    target = io.BytesIO()
    with matplotlib.style.context(["default", settings]):
        figure = _figure(report, narrow, titled)
        FigureCanvasAgg(figure)
        figure.savefig(target, facecolor=SURFACE, **saving)
    return target.getvalue()


def _figure(report: Report, narrow: bool, titled: bool) -> Figure:
    from matplotlib.figure import Figure

    series = series_of(report["results"])
    published = reference.drawn(report) if series else []
    frame = NARROW if narrow else WIDE
    above = TITLE_INCHES if titled else 0.15
    below = 0.58 + (0.24 * math.ceil((len(series) + 2 + bool(published)) / 2) if narrow else 0.0)
    width, height = frame.left + frame.width + frame.right, below + frame.height + above
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((frame.left / width, below / height, frame.width / width, frame.height / height))
    _dress(axes, report)
    if titled:
        _title(axes, report, height, f" Crosses: {reference.PLACE}." if published else "")
    if not series:
        axes.text(0.5, 0.5, "no bundle was measured", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])
        return figure
    spots = [spot for one in series for spot in _spots(one.rows)] + _published_spots(published)
    _limits(axes, spots)
    for one in series:
        _plot(axes, one)
    _plot_published(axes, published)
    _label(axes, series, published, figure.dpi)
    _front(axes, report["results"])
    _legend(axes, series, frame, narrow, 1 - above / height)
    return figure


def _legend(axes: Axes, series: Sequence[Series], frame: Frame, narrow: bool, top: float) -> None:
    """Series, the teacher's star and the front: right of the axes, or below them in the narrow drawing."""
    handles, names = axes.get_legend_handles_labels()
    if any(len(one.grades) < len(one.rows) for one in series):
        (star,) = axes.plot([], [], marker="*", markersize=13, linestyle="none", color=MUTED)
        handles, names = [*handles, star], [*names, "teacher, in its series' colour"]
    beside = (frame.left + frame.width + 0.1) / (frame.left + frame.width + frame.right)
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (beside, top)}
    if narrow:
        where = {"loc": "lower left", "bbox_to_anchor": (0.02, 0.01), "ncols": 2, "columnspacing": 1.2}
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 2.2}
    axes.figure.legend(handles, names, borderaxespad=0.0, **look, **where)


def _title(axes: Axes, report: Report, height: float, more: str) -> None:
    """Title and subtitle, with `more` to read, above the axes; `height` of the figure in inches."""
    left, top = axes.get_position().x0, axes.get_position().y1
    heading = f"Accuracy against size: {report.get('dataset') or 'unknown data'}"
    axes.figure.text(left, top + 0.45 / height, heading, weight="bold", size=12.5, color=INK)
    axes.figure.text(left, top + 0.19 / height, READING + more, size=9, color=MUTED)


def _dress(axes: Axes, report: Report) -> None:
    """Axes and grid."""
    axes.set_facecolor(SURFACE)
    axes.set_xscale("log")
    axes.set_xlabel("bundle size, MB of a million bytes (log scale)", color=INK, fontsize=10)
    axes.set_ylabel(f"MRR, {report['split']} split", color=INK, fontsize=10)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def _limits(axes: Axes, spots: Sequence[Spot]) -> None:
    """Room around the points, and plain round numbers on the logarithmic axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    sizes, mrrs = [size for size, _ in spots], [mrr for _, mrr in spots]
    low, high = min(sizes) / 1.25, max(sizes) * 1.25
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_round_numbers(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    room = max(0.12 * (max(mrrs) - min(mrrs)), 0.005)
    axes.set_ylim(max(0.0, min(mrrs) - room), min(1.0, max(mrrs) + room) + room / 4)


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight round numbers between `low` and `high`, denser where the range is narrow."""
    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 4, 6, 8),
        tuple(1 + step / 4 for step in range(36)),
    ):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: math.ceil(len(ticks) / 8)] if ticks else [low, high]


def _plot(axes: Axes, series: Series) -> None:
    """A line through the grades, the teacher as a star; the baseline hollow and dashed."""
    look: dict[str, Any] = {
        "color": series.colour,
        "markerfacecolor": SURFACE if series.is_baseline else series.colour,
        "markeredgecolor": series.colour,
        "zorder": 3,
    }
    axes.plot(
        *_coordinates(series.grades),
        marker=MARKERS.get(series.precision, OTHER_MARKER),
        markersize=7.5,
        markeredgewidth=1.6,
        linewidth=1.6,
        linestyle=(0, (4, 2.5)) if series.is_baseline else "-",
        label=series.name,
        **look,
    )
    teachers = [row for row in series.rows if row["stage"] == TEACHER]
    axes.plot(*_coordinates(teachers), marker="*", markersize=15, markeredgewidth=1.2, linestyle="none", **look)


def _plot_published(axes: Axes, published: Sequence[Reference]) -> None:
    """Crosses on a dotted line: re-ranked figures that were not measured here, at the size of their weights."""
    if published:
        look: dict[str, Any] = {"color": INK, "marker": "x", "markersize": 7, "markeredgewidth": 1.6, "zorder": 2.5}
        places = list(zip(*_published_spots(published), strict=True))
        axes.plot(*places, linestyle=":", linewidth=1.2, label=reference.LABEL, **look)


def _front(axes: Axes, rows: Sequence[Row]) -> None:
    """The Pareto front as a broad pale staircase behind the points."""
    best = sorted((row["bundle_bytes"] / 1e6, mrr_of(row)) for row in rows if row["on_front"])
    sizes, mrrs = [size for size, _ in best], [mrr for _, mrr in best]
    sizes, mrrs = [*sizes, axes.get_xlim()[1]], [*mrrs, mrrs[-1]]
    look: dict[str, Any] = {"color": FRONT, "linewidth": 4, "solid_capstyle": "butt", "solid_joinstyle": "miter"}
    axes.plot(sizes, mrrs, drawstyle="steps-post", zorder=1.5, label="Pareto front", **look)


def _label(axes: Axes, series: Sequence[Series], published: Sequence[Reference], dpi: float) -> None:
    """The grade beside each point, left out where it would cover something: its column tells it then."""

    def on_paper(spots: Sequence[Spot]) -> list[list[float]]:
        return (axes.transData.transform(spots) * 72 / dpi).tolist()

    rows = [row for one in series for row in one.rows]
    texts = [{TEACHER: TEACHER, "pre-distilled": "pre"}.get(row["stage"], str(row["grade"])) for row in rows]
    texts += [str(row.layers) for row in published]
    spots = [*_spots(rows), *_published_spots(published)]
    lines = [on_paper(_spots(one.grades)) for one in series if one.grades]
    lines += [on_paper(_published_spots(published))] if published else []
    offsets = labels.offsets(on_paper(spots), texts, LABEL_POINTS, lines)
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": LABEL_POINTS, "color": INK, "zorder": 4}
    for spot, text, offset in zip(spots, texts, offsets, strict=True):
        if offset is not None:
            axes.annotate(text, spot, xytext=offset, textcoords="offset points", **look)


def _spots(rows: Sequence[Row]) -> list[Spot]:
    """Size in MB and MRR of each row."""
    return [(row["bundle_bytes"] / 1e6, mrr_of(row)) for row in rows]


def _published_spots(published: Sequence[Reference]) -> list[Spot]:
    """What the parameters take in MB, and the MRR, of each published model."""
    return [((row.float32_bytes or 0) / 1e6, row.metrics["mrr"] or 0.0) for row in published]


def _coordinates(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Sizes in MB and MRRs."""
    spots = _spots(rows)
    return [size for size, _ in spots], [mrr for _, mrr in spots]
