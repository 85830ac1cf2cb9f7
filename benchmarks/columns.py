"""The columns of the page's tables: a row's figure, how it is shown, and what it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pmd.benchmarks.case import Row
from pmd.benchmarks.report import mrr_of
from pmd.benchmarks.table import UNKNOWN, fraction, megabytes, millions, percent, three_digits


@dataclass(frozen=True)
class Column:
    """A column of a table: `raw` gives what sorts, `show` what is read, `hint` what it means."""

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
    Column(
        "private, MB",
        lambda row: row.get("private_dirty_bytes"),
        megabytes,
        "Pages that this process alone has and wrote; mapped files are not among them",
    ),
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
