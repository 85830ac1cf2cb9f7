"""The report for a spreadsheet (CSV) and for a comment or a wiki (Markdown)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pmd.benchmarks import reference
from pmd.benchmarks.case import FROM_MANIFEST, Row
from pmd.benchmarks.peers import told as beside
from pmd.benchmarks.report import Report, label_of, mrr_of
from pmd.benchmarks.table import UNKNOWN, fraction, megabytes, millions, percent, three_digits

SIDE = ("mrr", "mean_rank", "hits@1", "hits@3", "hits@10", "queries")
METRICS = (*SIDE, *(f"{side}.{name}" for side in ("head", "tail") for name in SIDE))
CSV_COLUMNS = (
    "bundle",
    *FROM_MANIFEST,
    *("bundle_bytes", "answering_bytes"),
    *(f"query_ms.{name}" for name in ("p50", "p95", "p99", "mean")),
    *("batch_queries_per_second", "cold_start_ms", "peak_rss_bytes", "private_dirty_bytes"),
    *(f"{group}.{name}" for group in ("metrics", "metrics_reranked") for name in METRICS),
    *("mrr_kept", "mrr_of_teacher", "mrr_torch", "speedup.torch"),
    *(f"{other}.{name}" for other in ("against_fp32", "against_teacher") for name in ("difference", "p_value")),
    *("queries_timed", "cores_busy", "disturbed", "evaluate_seconds", "on_front", "error"),
)
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a text that begins so for a formula; names come from bundles, which anyone can make."""
COLUMNS = (
    "model",
    "method",
    "precision",
    "layers",
    "parameters, M",
    "size, MB",
    "p50, ms",
    "p95, ms",
    "p99, ms",
    "queries/s",
    "cold start, ms",
    "peak memory, MB",
    "MRR",
    "Hits@1",
    "Hits@3",
    "Hits@10",
    "MRR re-ranked",
    "kept",
    "of teacher",
)
TEXT_COLUMNS = 3
REFERENCE_COLUMNS = ("model", "layers", "parameters, M", "MRR", "Hits@1", "Hits@3", "Hits@10", "mean rank", "table")
HITS = ("hits@1", "hits@3", "hits@10")


def to_csv(report: Report) -> str:
    """A line of headings (dotted keys of report.json), then a line for each bundle; unknown is empty."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([_cell(_inside(row, column)) for column in CSV_COLUMNS] for row in report["results"])
    return target.getvalue()


def to_markdown(report: Report) -> str:
    """Heading, machine, a table of the bundles, those that failed, published figures, and the command."""
    rows, references = report["results"], reference.of_report(report)
    parts = [f"# {plain_text(report['dataset'] or 'Unknown data')}: bundles measured", _setting(report)]
    if rows:
        parts.append(markdown_table(COLUMNS, [_figures(row) for row in rows], TEXT_COLUMNS))
        parts.append(
            "**Bold**: on the Pareto front, no bundle is both smaller and more accurate. Kept: of the same grade's "
            f"MRR in torch. MB is a million bytes; {UNKNOWN} is unknown."
        )
    disturbed = [plain_text(row["bundle"]) for row in rows if row["disturbed"]]
    if disturbed:
        parts.append(f"Others took the machine while these were timed: {', '.join(disturbed)}.")
    parts += _beside(rows)
    failed = [f"- {plain_text(row['bundle'])}: {plain_text(row['error'])}" for row in rows if row["error"]]
    if failed:
        parts += ["## Not measured", "\n".join(failed)]
    if references:
        told = f"{reference.source()}. Protocol: {reference.protocol(report)}. Not measured here."
        parts += ["## Published, re-ranked", told, markdown_table(REFERENCE_COLUMNS, map(published, references), 1)]
    return "\n\n".join([*parts, "## To repeat it", code_block(report["command"] or "")]) + "\n"


def _beside(rows: Sequence[Row]) -> Iterator[str]:
    """The bundles beside other stacks, and those that were skipped; nothing where none was asked for."""
    made, skipped = beside.cells(rows), beside.skipped(rows)
    if made or skipped:
        yield "## Beside other stacks"
    if made:
        texts = [[plain_text(shown) for shown, _ in line] for line in made]
        yield markdown_table(beside.HEADINGS, texts, beside.TEXT_COLUMNS)
    if skipped:
        yield "\n".join(f"- skipped: {plain_text(name)}: {plain_text(why)}" for name, why, _ in skipped)


def _inside(row: Row, key: str) -> Any:
    """The value at a dotted key, None where something on the way is unknown."""
    value: Any = row
    for name in key.split("."):
        value = None if value is None else value.get(name)
    return value


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return "" if value is None else str(value).lower() if isinstance(value, bool) else value
    return f"'{value}" if value.startswith(FORMULA_STARTS) else value


def _setting(report: Report) -> str:
    machine = report["machine"]
    noise = machine["calibration"]["slowest_median_percent"]
    threads = f"{report['threads']} thread{'' if report['threads'] == 1 else 's'}"
    told = [f"{report['split']} split", f"{plain_text(machine['cpu'] or 'an unnamed processor')}, {threads}"]
    told += [plain_text(report["started_at"]), *(["a first look, with few repeats"] if report["quick"] else [])]
    return f"{'; '.join(told)}; noise {three_digits(noise)} %: smaller differences in time mean nothing."


def _figures(row: Row) -> list[str]:
    metrics, reranked, query = row["metrics"] or {}, row["metrics_reranked"] or {}, row["query_ms"]
    name = plain_text(label_of(row) if row["stage"] or row["grade"] is not None else row["bundle"])
    return [
        f"**{name}**" if row["on_front"] else name,
        plain_text(row["method"] or UNKNOWN),
        plain_text(row["precision"] or UNKNOWN),
        UNKNOWN if row["layers"] is None else str(row["layers"]),
        millions(row["parameters"]),
        megabytes(row["bundle_bytes"]),
        *(three_digits(query[name]) for name in ("p50", "p95", "p99")),
        three_digits(row["batch_queries_per_second"]),
        three_digits(row["cold_start_ms"]),
        megabytes(row["peak_rss_bytes"]),
        fraction(mrr_of(row)),
        *(fraction(metrics.get(name)) for name in HITS),
        fraction(reranked.get("mrr")),
        percent(row["mrr_kept"]),
        percent(row["mrr_of_teacher"]),
    ]


def published(row: reference.Reference) -> list[str]:
    """A model of a paper, with the digits it was published with."""
    shares = (row.metrics[name] for name in ("mrr", *HITS))
    rank = row.metrics["mean_rank"]
    return [
        row.model,
        str(row.layers),
        UNKNOWN if row.parameters is None else f"{row.parameters / 1e6:.0f}",
        *(UNKNOWN if share is None else f"{share:.3f}" for share in shares),
        UNKNOWN if rank is None else f"{rank:.1f}",
        ", ".join(map(str, row.tables)),
    ]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """A table as GitHub reads it: names to the left, figures to the right."""
    rule = ["---" if column < text_columns else "---:" for column in range(len(headings))]
    return "\n".join(_lines([headings, rule, *rows]))


def _lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(row)} |"


def plain_text(value: str) -> str:
    """A text that means only itself in Markdown and in HTML: one line, and its marks escaped."""
    plain = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", plain)


def code_block(command: str) -> str:
    """A block of code whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{command}\n{fence}"
