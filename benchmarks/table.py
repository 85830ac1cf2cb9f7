"""The report as a table for people reading a terminal, and how its figures are worded."""

from __future__ import annotations

from collections.abc import Sequence

from pmd.benchmarks.case import Row
from pmd.benchmarks.report import label_of, mrr_of

HEADINGS = (
    "model",
    "method",
    "precision",
    "layers",
    "parameters",
    "size",
    "query p50",
    "MRR",
    "kept",
    "of teacher",
)
TEXT_COLUMNS = 3
UNKNOWN = "–"


def lines(rows: Sequence[Row]) -> list[str]:
    """Aligned lines: headings, then a line for each row; a failed row says why instead of its figures."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    failures = [f"failed: {row['bundle']}: {row['error']}" for row in rows if row["error"]]
    return [*aligned(cells, TEXT_COLUMNS), *failures]


def aligned(cells: Sequence[Sequence[str]], text_columns: int) -> list[str]:
    """Lines of a table, the first its headings: names, which come first, to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = ["<" if column < text_columns else ">" for column in range(len(widths))]
    padded = [
        [f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)] for line in cells
    ]
    return ["  ".join(line).rstrip() for line in padded]


def megabytes(size: float | None) -> str:
    """Bytes in MB of a million bytes, three digits that count: 22.7, 4.31, 133."""
    return UNKNOWN if size is None else three_digits(size / 1e6)


def millions(count: float | None) -> str:
    """A count in millions."""
    return UNKNOWN if count is None else three_digits(count / 1e6)


def three_digits(value: float | None) -> str:
    """A positive number with three digits that count, never in powers of ten."""
    if value is None:
        return UNKNOWN
    decimals = next((d for d, limit in ((3, 1), (2, 10), (1, 100)) if abs(value) < limit), 0)
    return f"{value:,.{decimals}f}"


def fraction(value: float | None) -> str:
    """MRR and Hits@k with four decimals."""
    return UNKNOWN if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A ratio in percent."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def _cells(row: Row) -> tuple[str, ...]:
    unit_ms = three_digits(row["query_ms"]["p50"])
    return (
        label_of(row),
        row["method"] or UNKNOWN,
        row["precision"] or UNKNOWN,
        UNKNOWN if row["layers"] is None else str(row["layers"]),
        _with_unit(millions(row["parameters"]), "M"),
        _with_unit(megabytes(row["bundle_bytes"]), "MB"),
        _with_unit(unit_ms, "ms"),
        fraction(mrr_of(row)),
        percent(row["mrr_kept"]),
        percent(row["mrr_of_teacher"]),
    )


def _with_unit(text: str, unit: str) -> str:
    return text if text == UNKNOWN else f"{text} {unit}"
