"""The report as one self-contained page: nothing is fetched, so it opens anywhere and keeps."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from pmd.benchmarks import columns, curve, growth_plot, panels, reference, series, sheets
from pmd.benchmarks.case import Row
from pmd.benchmarks.peers import told
from pmd.benchmarks.report import TEACHER, Report, label_of, measured, mrr_of
from pmd.benchmarks.table import fraction, megabytes, percent, three_digits
from pmd.serving.extras import require

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

CLOSE = 0.97  # of the teacher's MRR: what the paper's smallest grade keeps
TEMPLATE, STYLE, SCRIPT = "report.html.j2", "report.css", "report.js"
TOKENS = {
    curve.INK: "--ink",
    curve.MUTED: "--muted",
    curve.GRID: "--line",
    curve.SURFACE: "--surface",
    curve.FRONT: "--front",
    series.BASELINE_COLOUR: "--series-baseline",
    **{colour: f"--series-{index}" for index, colour in enumerate(series.SERIES_COLOURS)},
}
"""Colours of the drawing that follow the page's scheme: each becomes a CSS variable, itself the fallback."""


def render(report: Report) -> str:
    """The page of a report, as HTML."""
    require("bench", "jinja2")
    from markupsafe import Markup

    rows = report["results"]
    whole = measured(rows)
    script = _file(SCRIPT)
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            report=report,
            machine=report["machine"],
            measured=whole,
            failed=[row for row in rows if row["error"]],
            highlights=highlights(whole),
            busy=[percent(pick(row["cores_busy"] for row in whole)) for pick in (min, max)] if whole else [],
            disturbed=panels.disturbed(rows),
            published=_published(report),
            peers=_peers(rows),
            filters=panels.filters(rows),
            tables=(
                ("Size and speed", "speed", columns.SIZE_AND_SPEED),
                ("Accuracy", "accuracy", columns.ACCURACY),
            ),
            boxes=panels.boxes(rows),
            throughput=panels.throughput(rows),
            pairs=panels.pairs(rows),
            drilldown=panels.drilldown(rows),
            curves=[_curve(report, cost) for cost in (series.SIZE, series.LATENCY)],
            growth=_growth(rows),
            style=Markup(_file(STYLE)),  # safe: files of this package
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_file),
    )
    environment.globals |= {"label": label_of, "name": series.name_of}
    environment.filters |= {
        "signed": _signed,
        "mb": megabytes,
        "digits": three_digits,
        "fraction": fraction,
        "percent": percent,
    }
    return environment


def _curve(report: Report, cost: series.Cost) -> dict[str, Any]:
    """A curve in both shapes, with what its text needs."""
    points = [series.told(row, cost) for one in series.series_of(report["results"]) for row in one.rows]
    words = series.description(report, cost)
    shapes = {
        shape: inline_svg(
            curve.svg(report, cost, narrow=shape == "narrow", titled=False),
            f"{cost.name}-{shape}",
            cost.title,
            words,
            shape=shape,
            points=points,
        )
        for shape in ("wide", "narrow")
    }
    best = [series.name_of(row) for row in series.front(report["results"], cost)]
    return {"name": cost.name, "title": cost.title, "front": best, **shapes}


def _growth(rows: Sequence[Row]) -> dict[str, Any] | None:
    """What the growth's part of the page needs; None where no row has any."""
    found = panels.growths(rows)
    if not found:
        return None
    words = " ".join(growth.told() for growth in found)
    drawing = inline_svg(growth_plot.svg(found), "growth", "Latency against the number of entities", words)
    synthetic = any(growth.synthetic for growth in found)
    return {"svg": drawing, "synthetic": synthetic, "table": panels.growth_table(found)}


def _published(report: Report) -> dict[str, Any]:
    """Published figures on the report's dataset, with the digits they were published with; `rows` may be empty."""
    rows = reference.of_report(report)
    return {
        "rows": rows,
        "headings": sheets.REFERENCE_COLUMNS,
        "cells": [sheets.published(row) for row in rows],
        "source": reference.source(),
        "protocol": reference.protocol(report),
    }


def _peers(rows: Sequence[Row]) -> dict[str, Any]:
    """Other stacks beside the bundles; all empty where none was asked for."""
    return {
        "headings": told.HEADINGS,
        "text_columns": told.TEXT_COLUMNS,
        "cells": told.cells(rows),
        "skipped": told.skipped(rows),
        "legend": told.legend(rows),
    }


def highlights(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The bundles that stand out, each once, with what it costs and saves against the teacher's."""
    if not rows:
        return []
    teacher = next((row for row in rows if row["stage"] == TEACHER), None)
    close = [row for row in rows if (row["mrr_of_teacher"] or 0) >= CLOSE and row["stage"] != TEACHER]
    chosen = [("Most accurate", max(rows, key=lambda row: (mrr_of(row), -row["bundle_bytes"])))]
    if close:
        name = f"Smallest keeping {100 * CLOSE:.0f} %"
        chosen.append((name, min(close, key=lambda row: (row["bundle_bytes"], -mrr_of(row)))))
    chosen.append(("Smallest", min(rows, key=lambda row: (row["bundle_bytes"], -mrr_of(row)))))
    chosen.append(("Fastest", min(rows, key=lambda row: (row["query_ms"]["p50"], -mrr_of(row)))))
    cards: dict[int, dict[str, Any]] = {}
    for title, row in chosen:
        card = cards.setdefault(id(row), {"titles": [], "row": row, "against": _against(row, teacher)})
        card["titles"].append(title if not card["titles"] else title[0].lower() + title[1:])
    return [{**card, "title": ", ".join(card["titles"])} for card in cards.values()]


def _against(row: Row, teacher: Row | None) -> str:
    """How a bundle compares with the teacher's; empty for the teacher itself."""
    if teacher is None or row is teacher:
        return ""
    smaller = teacher["bundle_bytes"] / row["bundle_bytes"]
    faster = teacher["query_ms"]["p50"] / row["query_ms"]["p50"]
    kept = f"{percent(mrr_of(row) / mrr_of(teacher))} of its MRR" if mrr_of(teacher) else "its MRR is zero"
    of = f"{TEACHER} {teacher['precision']}"
    return f"Against {of}: {smaller:.1f} × smaller, {faster:.1f} × as fast, {kept}."


def inline_svg(
    drawing: bytes, name: str, title: str, words: str, *, shape: str = "", points: Sequence[str] = ()
) -> Markup:
    """An SVG made fit for the page: ids of its own, a description, colours that follow the page's scheme.

    name: before every id. shape: a class more. points: what a pointer over each point reads, in the order of
    the drawing's spots.
    """
    from markupsafe import Markup, escape

    text = drawing.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _themed(found[0]), text)
    for index, point in enumerate(points):
        spot = f'<g id="{name}-{curve.SPOT}{index}"'
        text = text.replace(f"{spot}>", f'{spot} class="spot"><title>{escape(point)}</title>')
    opening, _, rest = text.partition(">")
    opening = re.sub(r'\s(?:width|height|version)="[^"]*"', "", opening)
    labelled = f'aria-labelledby="{name}-title" aria-describedby="{name}-words"'
    opening = f'{opening} class="{shape or name}" role="img" {labelled}>'
    heading = f'<title id="{name}-title">{escape(title)}</title>'
    described = f'<desc id="{name}-words">{escape(words)}</desc>'
    return Markup(opening + heading + described + rest)  # safe: matplotlib's own output and escaped words


def _signed(value: float) -> str:
    """A difference with its sign and four decimals; what rounds to nothing is +0.0000."""
    return f"{round(value, 4) + 0.0:+.4f}"


def _themed(colour: str) -> str:
    return f"var({TOKENS[colour]}, {colour})" if colour in TOKENS else colour


def _file(name: str) -> str:
    return resources.files("pmd.benchmarks").joinpath("templates", name).read_text(encoding="utf-8")
