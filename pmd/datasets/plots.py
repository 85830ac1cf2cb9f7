"""Plots of a check's report as SVG, with matplotlib's objects and no pyplot: nothing global is touched."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = dict[str, Any]

INK, MUTED, GRID, BAR, LEAK, LIMIT = "#1c1e21", "#5b6168", "#dfe2e6", "#0072b2", "#d55e00", "#a33b00"
COLOURS = {INK: "--ink", MUTED: "--muted", GRID: "--line", BAR: "--bar", LEAK: "--leak", LIMIT: "--warn"}
"""Colours that follow the page's scheme, each the CSS variable it becomes."""
SIZE_INCHES = (6.4, 3.2)
MOST_RELATIONS = 15


def degrees(report: Report) -> str:
    """Entities by training triples, in powers of two."""
    bins = report["degrees"]["histogram"]
    labels = [f"{row['from']:,}" if row["from"] == row["to"] else f"{row['from']:,}-{row['to']:,}" for row in bins]
    counts = [row["entities"] for row in bins]
    return _svg("degrees", lambda axes: _bars(axes, labels, counts, "training triples of an entity", "entities"))


def tokens(report: Report) -> str:
    """Entity texts by tokens, with the limit at which they are cut."""
    told = report["tokens"]

    def draw(axes: Axes) -> None:
        rows = told["histogram"]
        width = rows[0]["to"] + 1 if rows and rows[0]["to"] is not None else 5
        starts = [row["from"] for row in rows]
        colours = [LEAK if start >= told["limit"] else BAR for start in starts]
        axes.bar(starts, [row["texts"] for row in rows], width=0.9 * width, align="edge", color=colours)
        axes.axvline(told["limit"], color=LIMIT, linewidth=1.4, linestyle=(0, (4, 2.5)))
        axes.set_xlabel("tokens of an entity text (the last bar: that many or more)", color=INK, fontsize=9)
        axes.set_ylabel("entities", color=INK, fontsize=9)

    return _svg("tokens", draw)


def leakage(report: Report) -> str:
    """Shares of valid and test triples that training gives away."""
    names = ("reversed,\nany relation", "reversed,\nsame relation", "same pair")
    keys = ("reversed", "reversed_same_relation", "same_pair")

    def draw(axes: Axes) -> None:
        for offset, (split, colour) in enumerate((("valid", BAR), ("test", LEAK))):
            shares = [100 * (report["leakage"][split][key] or 0.0) for key in keys]
            places = [place + 0.4 * offset - 0.2 for place in range(len(keys))]
            axes.bar(places, shares, width=0.36, color=colour, label=split)
        axes.set_xticks(range(len(keys)), names)
        axes.set_ylim(0, 100)
        axes.set_ylabel("% of triples", color=INK, fontsize=9)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)

    return _svg("leakage", draw)


def relations(report: Report) -> str:
    """Training triples of the most frequent relations."""
    rows = sorted(report["relations"], key=lambda row: -row["train"])[:MOST_RELATIONS][::-1]

    def draw(axes: Axes) -> None:
        axes.barh(range(len(rows)), [row["train"] for row in rows], color=BAR)
        axes.set_yticks(range(len(rows)), [_shortened(row["text"]) for row in rows])
        axes.set_xlabel("training triples", color=INK, fontsize=9)
        axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)

    return _svg("relations", draw, height=0.6 + 0.26 * max(len(rows), 3))


def _bars(axes: Axes, labels: Sequence[str], counts: Sequence[int], below: str, beside: str) -> None:
    axes.bar(range(len(labels)), counts, color=BAR)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axes.set_xlabel(below, color=INK, fontsize=9)
    axes.set_ylabel(beside, color=INK, fontsize=9)


def _shortened(text: str, most: int = 38) -> str:
    """A label that matplotlib takes as it stands: `$` would begin mathematics."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(char if char.isprintable() else "�" for char in text).replace("$", r"\$")


def _svg(name: str, draw: Callable[[Axes], None], height: float = SIZE_INCHES[1]) -> str:
    """A drawing as an `<svg>` element for a page: ids of its own, colours as variables; repeatable."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = io.BytesIO()
    with matplotlib.style.context(["default", {"svg.hashsalt": "pmd-data", "svg.fonttype": "none"}]):
        figure = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _dress(axes)
        draw(axes)
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(target.getvalue().decode("utf-8"), name)


def _dress(axes: Axes) -> None:
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)


def _inline(text: str, name: str) -> str:
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"#[0-9a-f]{6}\b", _variable, text)
    opening, _, rest = text.partition(">")
    return re.sub(r'\s(?:width|height|version)="[^"]*"', "", opening) + ' role="img" aria-hidden="true">' + rest


def _variable(found: re.Match[str]) -> str:
    colour = found[0]
    return f"var({COLOURS[colour]}, {colour})" if colour in COLOURS else colour
