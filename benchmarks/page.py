"""The report as one self-contained page: nothing is fetched, so it opens anywhere and keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pmd.benchmarks import curve, reference, series, sheets
from pmd.benchmarks.case import Row
from pmd.benchmarks.report import TEACHER, Report, label_of, measured, mrr_of
from pmd.benchmarks.table import UNKNOWN, fraction, megabytes, millions, percent, three_digits
from pmd.serving.extras import require

CLOSE = 0.97  # of the teacher's MRR: what the paper's smallest grade keeps
TEMPLATE = "report.html.j2"
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


@dataclass(frozen=True)
class Column:
    """A column of a table: `raw` gives what sorts, `show` what is read."""

    heading: str
    raw: Callable[[Row], Any]
    show: Callable[[Any], str]
    hint: str = ""


def _hits(key: str) -> Callable[[Row], Any]:
    return lambda row: row["metrics"][key] if row["metrics"] else None


def _side(key: str) -> Callable[[Row], Any]:
    return lambda row: row["metrics"][key]["mrr"] if row["metrics"] else None


def _plain(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def _whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


SIZE_AND_SPEED = (
    Column("layers", lambda row: row["layers"], _plain),
    Column("parameters, M", lambda row: row["parameters"], millions, "Both towers"),
    Column("size, MB", lambda row: row["bundle_bytes"], megabytes, "Every file of the bundle"),
    Column("to answer, MB", lambda row: row["answering_bytes"], megabytes, "Without the optional entity tower"),
    Column("p50, ms", lambda row: row["query_ms"]["p50"], three_digits, "Half of the queries took at most this"),
    Column("p95, ms", lambda row: row["query_ms"]["p95"], three_digits),
    Column("p99, ms", lambda row: row["query_ms"]["p99"], three_digits),
    Column("queries/s", lambda row: row["batch_queries_per_second"], _whole, "In batches of 64"),
    Column("cold start, ms", lambda row: row["cold_start_ms"], _whole, "Process start to first answer"),
    Column("peak memory, MB", lambda row: row["peak_rss_bytes"], megabytes, "Peak resident set"),
)
ACCURACY = (
    Column("MRR", mrr_of, fraction, "Mean reciprocal rank"),
    Column("Hits@1", _hits("hits@1"), fraction),
    Column("Hits@3", _hits("hits@3"), fraction),
    Column("Hits@10", _hits("hits@10"), fraction),
    Column("mean rank", _hits("mean_rank"), three_digits),
    Column("head MRR", _side("head"), fraction, "Predicting heads"),
    Column("tail MRR", _side("tail"), fraction, "Predicting tails"),
    Column(
        "MRR re-ranked",
        lambda row: row["metrics_reranked"]["mrr"] if row["metrics_reranked"] else None,
        fraction,
        "With the neighbour bonus of published figures",
    ),
    Column("kept", lambda row: row["mrr_kept"], percent, "Of the same grade's MRR in torch"),
    Column("of teacher", lambda row: row["mrr_of_teacher"], percent, "Of the teacher's MRR in torch"),
)


def render(report: Report) -> str:
    """The page of a report, as HTML."""
    require("bench", "jinja2")
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"label": label_of}
    environment.filters |= {"mb": megabytes, "digits": three_digits, "fraction": fraction, "percent": percent}
    template = environment.from_string(_template())
    whole = measured(report["results"])
    return template.render(
        report=report,
        machine=report["machine"],
        measured=whole,
        failed=[row for row in report["results"] if row["error"]],
        highlights=highlights(whole),
        busy=[percent(pick(row["cores_busy"] for row in whole)) for pick in (min, max)] if whole else [],
        published=_published(report),
        tables=(("Size and speed", "speed", SIZE_AND_SPEED), ("Accuracy", "accuracy", ACCURACY)),
        wide=inline_svg(curve.svg(report, titled=False), "wide", series.description(report)),
        narrow=inline_svg(curve.svg(report, narrow=True, titled=False), "narrow", series.description(report)),
    )


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


def inline_svg(drawing: bytes, name: str, words: str) -> Any:
    """An SVG made fit for the page: ids of its own, a description, colours that follow the page's scheme."""
    from markupsafe import Markup, escape

    text = drawing.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _themed(found[0]), text)
    opening, _, rest = text.partition(">")
    opening = re.sub(r'\s(?:width|height|version)="[^"]*"', "", opening)
    opening = f'{opening} class="{name}" role="img" aria-labelledby="{name}-title {name}-words">'
    heading = f'<title id="{name}-title">Accuracy against size</title>'
    told = f'<desc id="{name}-words">{escape(words)}</desc>'
    return Markup(opening + heading + told + rest)  # safe: matplotlib's own output and escaped words


def _themed(colour: str) -> str:
    return f"var({TOKENS[colour]}, {colour})" if colour in TOKENS else colour


def _template() -> str:
    return resources.files("pmd.benchmarks").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
