"""Accuracy against what it costs: MRR over bundle size or latency, one series per method and precision.

Drawn with matplotlib's objects and no pyplot, so nothing global is touched; the same rows give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pmd.benchmarks import labels, reference
from pmd.benchmarks.case import Row
from pmd.benchmarks.reference import Reference
from pmd.benchmarks.report import TEACHER, Report, mrr_of
from pmd.benchmarks.series import SIZE, Cost, Series, front, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spot: TypeAlias = tuple[float, float]
"""Cost (MB or ms) and MRR."""

INK, MUTED, GRID, SURFACE, FRONT = "#1c1e21", "#5b6168", "#dfe2e6", "#ffffff", "#c9cdd3"
MARKERS = {"fp32": "o", "fp16": "s", "int8": "^", "int8-static": "D", "int4": "v"}
OTHER_MARKER = "P"
READING = "Numbers at points: grade (layers). Up and to the left is better."
TITLE_INCHES = 0.8
PLAIN_SVG = {"Date": None, "Creator": None}
SPOT = "spot-"
"""Ids of the points in an SVG begin so; their numbers go through `series_of`, row after row."""
DASHES = {
    "pmd-no-mgfd": "-.",
    "lkd": (0, (7, 1.5)),
    "pkd": (0, (5, 1.2, 1.2, 1.2, 1.2, 1.2)),
    "baseline": (0, (4, 2.5)),
}
FILLS = {"pmd-no-mgfd": "left", "lkd": "bottom", "pkd": "top"}
"""Lines and fillings of methods, so that colour is never alone in telling them apart."""
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


def svg(report: Report, cost: Cost = SIZE, *, narrow: bool = False, titled: bool = True) -> bytes:
    """The curve as SVG; the same report gives the same bytes. A page brings a title of its own."""
    return saved(lambda: _figure(report, cost, narrow, titled), format="svg", metadata=PLAIN_SVG)


def png(report: Report) -> bytes:
    """The curve of sizes as PNG, 160 dots per inch."""
    return saved(lambda: _figure(report, SIZE, False, True), format="png", dpi=160, metadata={"Software": None})


def saved(make: Callable[[], Figure], **saving: Any) -> bytes:
    """A figure's file; the same figure gives the same bytes. `saving`: of matplotlib's `savefig`."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Readers' own matplotlibrc must not change the picture; the salt makes the ids of the SVG repeat.
    settings = {"svg.hashsalt": "pmd-bench", "svg.fonttype": "path", "path.simplify": False}
    target = io.BytesIO()
    with matplotlib.style.context(["default", settings]):
        figure = make()
        FigureCanvasAgg(figure)
        figure.savefig(target, facecolor=SURFACE, **saving)
    return target.getvalue()


def _figure(report: Report, cost: Cost, narrow: bool, titled: bool) -> Figure:
    from matplotlib.figure import Figure

    series = series_of(report["results"])
    published = reference.drawn(report) if series and cost is SIZE else []
    frame = NARROW if narrow else WIDE
    above = TITLE_INCHES if titled else 0.15
    below = 0.58 + (0.24 * math.ceil((len(series) + 2 + bool(published)) / 2) if narrow else 0.0)
    width, height = frame.left + frame.width + frame.right, below + frame.height + above
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((frame.left / width, below / height, frame.width / width, frame.height / height))
    axes.set_xscale("log")
    dress(axes, cost.axis, f"MRR, {report['split']} split")
    if titled:
        _title(axes, report, cost, height, f" Crosses: {reference.PLACE}." if published else "")
    if not series:
        axes.text(0.5, 0.5, "no bundle was measured", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])
        return figure
    rows = [row for one in series for row in one.rows]
    _limits(axes, _spots(rows, cost) + _published_spots(published))
    for one in series:
        _plot(axes, one, cost)
    _plot_published(axes, published)
    _label(axes, series, cost, published, figure.dpi)
    _plot_front(axes, report["results"], cost)
    _legend(axes, series, frame, narrow, 1 - above / height)
    for index, spot in enumerate(_spots(rows, cost)):  # unseen, last and so on top: what a pointer finds
        axes.plot(*spot, marker="o", markersize=15, color=MUTED, alpha=0, zorder=5, gid=f"{SPOT}{index}")
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


def _title(axes: Axes, report: Report, cost: Cost, height: float, more: str) -> None:
    """Title and subtitle, with `more` to read, above the axes; `height` of the figure in inches."""
    left, top = axes.get_position().x0, axes.get_position().y1
    heading = f"{cost.title}: {report.get('dataset') or 'unknown data'}"
    axes.figure.text(left, top + 0.45 / height, heading, weight="bold", size=12.5, color=INK)
    axes.figure.text(left, top + 0.19 / height, READING + more, size=9, color=MUTED)


def dress(axes: Axes, across: str, up: str) -> None:
    """Titles of the axes, ticks and grid."""
    axes.set_facecolor(SURFACE)
    axes.set_xlabel(across, color=INK, fontsize=10)
    axes.set_ylabel(up, color=INK, fontsize=10)
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
    axes.xaxis.set_major_locator(FixedLocator(labels.round_numbers(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    room = max(0.12 * (max(mrrs) - min(mrrs)), 0.005)
    axes.set_ylim(max(0.0, min(mrrs) - room), min(1.0, max(mrrs) + room) + room / 4)


def _plot(axes: Axes, series: Series, cost: Cost) -> None:
    """A line through the grades, the teacher as a star; the baseline hollow and dashed."""
    look: dict[str, Any] = {
        "color": series.colour,
        "markerfacecolor": SURFACE if series.is_baseline else series.colour,
        "markerfacecoloralt": SURFACE,
        "fillstyle": FILLS.get(series.method, "full"),
        "markeredgecolor": series.colour,
        "zorder": 3,
    }
    axes.plot(
        *_coordinates(series.grades, cost),
        marker=MARKERS.get(series.precision, OTHER_MARKER),
        markersize=7.5,
        markeredgewidth=1.6,
        linewidth=1.6,
        linestyle=DASHES.get(series.method, "-"),
        label=series.name,
        **look,
    )
    teachers = [row for row in series.rows if row["stage"] == TEACHER]
    axes.plot(
        *_coordinates(teachers, cost), marker="*", markersize=15, markeredgewidth=1.2, linestyle="none", **look
    )


def _plot_published(axes: Axes, published: Sequence[Reference]) -> None:
    """Crosses on a dotted line: re-ranked figures that were not measured here, at the size of their weights."""
    if published:
        look: dict[str, Any] = {"color": INK, "marker": "x", "markersize": 7, "markeredgewidth": 1.6, "zorder": 2.5}
        places = list(zip(*_published_spots(published), strict=True))
        axes.plot(*places, linestyle=":", linewidth=1.2, label=reference.LABEL, **look)


def _plot_front(axes: Axes, rows: Sequence[Row], cost: Cost) -> None:
    """The Pareto front as a broad pale staircase behind the points."""
    costs, mrrs = _coordinates(front(rows, cost), cost)
    costs, mrrs = [*costs, axes.get_xlim()[1]], [*mrrs, mrrs[-1]]
    look: dict[str, Any] = {"color": FRONT, "linewidth": 4, "solid_capstyle": "butt", "solid_joinstyle": "miter"}
    axes.plot(costs, mrrs, drawstyle="steps-post", zorder=1.5, label="Pareto front", **look)


def _label(axes: Axes, series: Sequence[Series], cost: Cost, published: Sequence[Reference], dpi: float) -> None:
    """The grade beside each point, left out where it would cover something: its column tells it then."""

    def on_paper(spots: Sequence[Spot]) -> list[list[float]]:
        return (axes.transData.transform(spots) * 72 / dpi).tolist()

    rows = [row for one in series for row in one.rows]
    texts = [{TEACHER: TEACHER, "pre-distilled": "pre"}.get(row["stage"], str(row["grade"])) for row in rows]
    texts += [str(row.layers) for row in published]
    spots = [*_spots(rows, cost), *_published_spots(published)]
    lines = [on_paper(_spots(one.grades, cost)) for one in series if one.grades]
    lines += [on_paper(_published_spots(published))] if published else []
    offsets = labels.offsets(on_paper(spots), texts, LABEL_POINTS, lines)
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": LABEL_POINTS, "color": INK, "zorder": 4}
    for spot, text, offset in zip(spots, texts, offsets, strict=True):
        if offset is not None:
            axes.annotate(text, spot, xytext=offset, textcoords="offset points", **look)


def _spots(rows: Sequence[Row], cost: Cost) -> list[Spot]:
    """Cost and MRR of each row."""
    return [(cost.of(row), mrr_of(row)) for row in rows]


def _published_spots(published: Sequence[Reference]) -> list[Spot]:
    """What the parameters take in MB, and the MRR, of each published model."""
    return [((row.float32_bytes or 0) / 1e6, row.metrics["mrr"] or 0.0) for row in published]


def _coordinates(rows: Sequence[Row], cost: Cost) -> tuple[list[float], list[float]]:
    """Costs and MRRs."""
    spots = _spots(rows, cost)
    return [value for value, _ in spots], [mrr for _, mrr in spots]
