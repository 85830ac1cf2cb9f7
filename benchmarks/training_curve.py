"""The curves of the training bench: valid MRR against epochs and against seconds, one line a loop."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pmd.benchmarks.curve import GRID, INK, MUTED, SURFACE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = (
    ("#1f6fb2", "o", "-"),
    ("#2a9d6f", "s", "-"),
    ("#8a8f96", "^", "--"),
)  # ours are solid, the padded one dashed
Arms = Mapping[str, Sequence[Mapping[str, Any]]]


def figure(arms: Arms, suffix: str) -> bytes:
    """The figure as `svg` or `png`; the same curves give the same bytes."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    saving: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}}
    if suffix == "png":
        saving = {"metadata": {"Software": None}, "dpi": 160}
    target = io.BytesIO()
    with matplotlib.style.context(["default", {"svg.hashsalt": "pmd-bench", "svg.fonttype": "path"}]):
        drawn = _figure(arms)
        FigureCanvasAgg(drawn)
        drawn.savefig(target, format=suffix, facecolor=SURFACE, **saving)
    return target.getvalue()


def _figure(arms: Arms) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = Figure(figsize=(8.4, 3.9), layout="constrained")
    left, right = drawn.subplots(1, 2, sharey=True)
    _plot(left, arms, "epoch", "epochs")
    _plot(right, arms, "seconds", "seconds, validation included")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xlim(left=0)
    left.set_ylabel("MRR, valid split", color=INK)
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return drawn


def _plot(axes: Axes, arms: Arms, key: str, label: str) -> None:
    for (name, records), (colour, marker, line) in zip(arms.items(), LOOKS, strict=False):
        known = [record for record in records if record["valid_mrr"] is not None]
        places, mrrs = [record[key] for record in known], [record["valid_mrr"] for record in known]
        axes.plot(places, mrrs, color=colour, marker=marker, linestyle=line, label=name)
    axes.set_xlabel(label, color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.tick_params(colors=MUTED, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
