"""A study as a drawing, in greys and shapes alone so that it survives a black-and-white printer.

Matplotlib's objects and no pyplot, so nothing global is touched; the same study gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pmd.study.variants import ALONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c1e21", "#5b6168", "#dfe2e6"
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P"), ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
PANELS_PER_ROW = 4
HITS = {"Hits@1": "test_hits@1", "Hits@10": "test_hits@10"}
Row = Mapping[str, Any]


def draw(study: Row) -> dict[str, bytes]:
    """The study's drawing as `svg` and `png` (150 dots per inch)."""
    import matplotlib.style

    # Readers' own matplotlibrc must not change the picture; the salt makes the ids of the SVG repeat.
    settings = {"svg.hashsalt": "pmd-study", "svg.fonttype": "path", "font.size": 9, "axes.labelcolor": INK}
    with matplotlib.style.context(["default", settings]):
        figure = _figure(study)
        svg = _saved(figure, format="svg", metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")  # everything has its place now: worked out once for both
        return {"svg": svg, "png": _saved(figure, format="png", dpi=150, metadata={"Software": None})}


def _figure(study: Row) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    _compose(figure, study)
    figure.suptitle(_title(study), fontsize=11, fontweight="bold", color=INK)
    return figure


def _saved(figure: Figure, **saving: Any) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, facecolor="white", **saving)
    return target.getvalue()


def _compose(figure: Figure, study: Row) -> None:
    """The drawing that suits the study: a heat map, curves over mask rates, or a panel for each grade."""
    rows = [row for row in study["variants"] if row["grades"]]
    if not rows and not study.get("trials"):
        figure.text(0.5, 0.5, "nothing is trained yet", ha="center", color=MUTED)
    elif "trials" in study:
        _heat_map(figure, study)
    elif any(row["name"].startswith(ALONE) for row in rows):
        _mask_rates(figure, rows)
    else:
        _panels(figure, rows, study["reference"])


def _title(study: Row) -> str:
    seeds = len(study["seeds"])
    return f"{study['title']}: {study['dataset']}, {seeds} seed{'s' if seeds > 1 else ''}"


def _panels(figure: Figure, rows: Sequence[Row], reference: str) -> None:
    """A panel for each grade: the variants below each other, the reference as a dotted line through all."""
    grades = sorted({int(grade) for row in rows for grade in row["grades"] if grade.isdigit()}, reverse=True)
    across = min(max(len(grades), 1), PANELS_PER_ROW)
    down = math.ceil(max(len(grades), 1) / across)
    figure.set_size_inches(2.2 + 2.3 * across, down * (1.3 + 0.27 * len(rows)))
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    key, label = _judged(rows)
    for panel, grade in zip(panels, grades, strict=False):
        _dots(panel, rows, str(grade), key, reference)
        panel.set_title(f"{grade} layers", fontsize=9.5, color=INK)
        panel.set_xlabel(label)
    for panel in panels[len(grades) :]:
        panel.set_visible(False)
    panels[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)


def _dots(axes: Axes, rows: Sequence[Row], grade: str, key: str, reference: str) -> None:
    _dress(axes)
    axes.locator_params(axis="x", nbins=4)
    for place, row in enumerate(rows):
        value = row["grades"].get(grade, {}).get(key)
        if value is None or value["mean"] is None:
            continue
        own = row["name"] == reference
        axes.errorbar(
            value["mean"], place, xerr=value["std"] or 0.0, fmt="D" if own else "o", **_look(hollow=not own)
        )
        singles = [seed for seed in value["values"].values() if seed is not None]
        if len(singles) > 1:
            axes.plot(singles, [place] * len(singles), "|", color=MUTED, markersize=5)
        if own:
            axes.axvline(value["mean"], color=MUTED, linestyle=":", linewidth=1, zorder=1)


def _mask_rates(figure: Figure, rows: Sequence[Row]) -> None:
    """Left: schedules over the grades (Figure 2). Right: one student over mask rates (Figure 3)."""
    ladders = [row for row in rows if not row["name"].startswith(ALONE)]
    singles = [row for row in rows if row["name"].startswith(ALONE)]
    figure.set_size_inches(10, 4)
    left, right = figure.subplots(1, 2)
    key, label = _judged(rows)
    grades = sorted({int(grade) for row in ladders for grade in row["grades"] if grade.isdigit()}, reverse=True)
    for number, row in enumerate(ladders):
        aside = 0.06 * (number - (len(ladders) - 1) / 2)  # so that equal bars do not hide each other
        found = [(place + aside, row["grades"].get(str(grade), {}).get(key)) for place, grade in enumerate(grades)]
        _curve(left, found, row["name"], number)
    left.set_xticks(range(len(grades)), [str(grade) for grade in grades])
    _finish(left, "layers of the student", label, "schedules over the grades")
    split = key.removesuffix("_mrr")
    for number, (name, figure_key) in enumerate(
        {"MRR": key, "Hits@1": f"{split}_hits@1", "Hits@10": f"{split}_hits@10"}.items()
    ):
        _curve(right, _over_rates(singles, figure_key), name, number)
    _finish(
        right,
        "mask rate, % of real tokens",
        "MRR and Hits, test split" if split == "test" else label,
        "the pre-distilled student alone",
    )


def _over_rates(rows: Sequence[Row], key: str) -> list[tuple[float, Row | None]]:
    """(rate in %, figure) of single students, by rate; the rate is in the name since one is trained at each."""
    found = []
    for row in rows:
        grade: Row = next((facts for name, facts in row["grades"].items() if name.isdigit()), {})
        found.append((float(row["name"].removeprefix(ALONE)), grade.get(key)))
    return sorted(found, key=lambda pair: pair[0])


def _curve(axes: Axes, points: Sequence[tuple[float, Row | None]], name: str, number: int) -> None:
    """A line with error bars, told apart by marker, dashes and fill."""
    known = [
        (place, value["mean"], value["std"] or 0.0)
        for place, value in points
        if value and value["mean"] is not None
    ]
    if not known:
        return
    places, means, stds = zip(*known, strict=True)
    look = _look(hollow=number % 2 == 1)
    style: dict[str, Any] = {
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "linewidth": 1.2,
    }
    axes.errorbar(places, means, yerr=stds, label=name, **look, **style)


def _finish(axes: Axes, across: str, up: str, title: str) -> None:
    _dress(axes)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize=9.5, color=INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, handlelength=3.2)


def _heat_map(figure: Figure, study: Row) -> None:
    """Valid MRR over α and β: darker is better, the best framed, pruned trials in italics with a star."""
    from matplotlib.colors import LinearSegmentedColormap

    cells = {
        (round(trial["alpha"] * 20), round(trial["beta"] * 20)): trial
        for trial in study["trials"]
        if trial["value"] is not None
    }
    grid = [[cells.get((column, row), {}).get("value", math.nan) for column in range(11)] for row in range(11)]
    figure.set_size_inches(7, 5.6)
    axes = figure.subplots()
    # From pale to middle grey, so that the figures in the cells and the frame of the best stay readable.
    greys = LinearSegmentedColormap.from_list("greys", ["#f4f4f4", "#8f8f8f"])
    image = axes.imshow(grid, origin="lower", cmap=greys, aspect="auto")
    for place, trial in cells.items():
        _cell(axes, place, trial, best=bool(study["best"]) and trial["variant"] == study["best"]["variant"])
    ticks = [f"{place / 20:.2f}" for place in range(11)]
    axes.set_xticks(range(11), ticks)
    axes.set_yticks(range(11), ticks)
    axes.set_xlabel("α, weight of the score term")
    axes.set_ylabel("β, weight of the masked-feature term")
    axes.set_title(f"student of {study['grade']} layers; best framed, * stopped early", fontsize=9.5, color=INK)
    if len(cells) > 1:
        figure.colorbar(image, label="valid MRR")


def _cell(axes: Axes, place: tuple[int, int], trial: Row, *, best: bool) -> None:
    """A trial's value in its cell, framed so that a pale cell is told from an empty one."""
    from matplotlib.patches import Rectangle

    pruned = trial["state"] == "pruned"
    text = f"{trial['value']:.3f}".lstrip("0") + ("*" if pruned else "")
    style = "italic" if pruned else "normal"
    axes.text(*place, text, ha="center", va="center", fontsize=8, style=style, color="black")
    frame: dict[str, Any] = {"edgecolor": "black", "linewidth": 2.6, "zorder": 4} if best else {"edgecolor": MUTED}
    axes.add_patch(Rectangle((place[0] - 0.5, place[1] - 0.5), 1, 1, fill=False, **{"linewidth": 0.6, **frame}))


def _judged(rows: Sequence[Row]) -> tuple[str, str]:
    """The figure to draw, with its label: of the test split where there is one."""
    tested = any(facts["test_mrr"]["mean"] is not None for row in rows for facts in row["grades"].values())
    return ("test_mrr", "MRR, test split") if tested else ("valid_mrr", "MRR, validation split")


def _look(*, hollow: bool) -> dict[str, Any]:
    return {
        "color": INK,
        "markerfacecolor": "white" if hollow else INK,
        "markersize": 5.5,
        "capsize": 3,
        "zorder": 3,
    }


def _dress(axes: Axes) -> None:
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8.5, length=2.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
