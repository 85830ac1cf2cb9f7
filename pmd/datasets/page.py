"""A check's report as one self-contained page: nothing is fetched, so it opens anywhere and keeps."""

from __future__ import annotations

from importlib import resources
from typing import Any

from pmd.datasets import plots
from pmd.datasets.report import number, percent, split_rows
from pmd.serving.extras import require

TEMPLATE = "check.html.j2"
Report = dict[str, Any]


def render(report: Report) -> str:
    """The page as HTML; the same report gives the same page."""
    require("data", "jinja2", "matplotlib")
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number}
    template = environment.from_string(
        resources.files("pmd.datasets").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
    )
    drawings = {  # safe as markup: matplotlib escapes the texts it draws
        "leakage": Markup(plots.leakage(report)),
        "relations": Markup(plots.relations(report)),
        "degrees": Markup(plots.degrees(report)),
        "tokens": Markup(plots.tokens(report)) if report["tokens"] else None,
    }
    return template.render(report=report, drawings=drawings, split_rows=split_rows(report))
