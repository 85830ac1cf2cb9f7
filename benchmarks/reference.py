"""Published figures to set beside a report: shipped as data, with source and protocol, and never measured here."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pmd.benchmarks.report import Report

FOLDER, NAME = "facts", "reference.json"
BYTES_A_PARAMETER = 4  # float32
LABEL = "paper, re-ranked"
PLACE = "4 bytes a parameter"


@dataclass(frozen=True)
class Reference:
    """One model of a paper."""

    dataset: str
    model: str
    layers: int
    parameters: int | None
    metrics: Mapping[str, float | None]
    """mrr, mean_rank, hits@1, hits@3, hits@10; None where the paper does not say."""
    tables: tuple[int, ...]

    @property
    def float32_bytes(self) -> int | None:
        """What its parameters take in float32; None where their number is not stated."""
        return None if self.parameters is None else BYTES_A_PARAMETER * self.parameters


def of_report(report: Report) -> list[Reference]:
    """The published models on a report's dataset, drawn ones first; none unless its split is theirs."""
    if report["split"] != facts()["protocol"]["split"]:
        return []
    name = plain_name(report.get("dataset") or "")
    rows = [
        Reference(**row | {"tables": tuple(row["tables"])}) for row in facts()["rows"] if row["dataset"] == name
    ]
    return sorted(rows, key=lambda row: row.parameters is None)


def drawn(report: Report) -> list[Reference]:
    """Those whose place on the axis of sizes is known, by falling size."""
    known = [row for row in of_report(report) if row.float32_bytes is not None]
    return sorted(known, key=lambda row: -(row.float32_bytes or 0))


def plain_name(dataset: str) -> str:
    """A dataset's name as the figures call it: WN18RR and wn18rr, FB15k-237 and fb15k237 are one."""
    return dataset.lower().replace("-", "").replace("_", "")


def source() -> str:
    """Where the figures are from, in a few words."""
    paper = facts()["source"]
    return f"{paper['title']}, {paper['venue']}, arXiv {paper['arxiv']}"


def protocol(report: Report) -> str:
    """How the figures of a report's dataset were made, in a few words."""
    stated = facts()["protocol"]
    hops = stated["rerank_hops"].get(plain_name(report.get("dataset") or ""))
    rerank = f"re-ranked (+{stated['rerank_weight']} within {hops} hops)"
    return f"{stated['split']} split, filtered, {stated['sides']}, {rerank}"


@functools.cache
def facts() -> dict[str, Any]:
    """The shipped file, as a dictionary that must not be changed."""
    text = resources.files("pmd.benchmarks").joinpath(FOLDER, NAME).read_text(encoding="utf-8")
    return dict(json.loads(text))
