"""The approximate index beside exact search: how long it takes to build and to ask, and what it finds."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np

from pmd.benchmarks.edge.child import Answer, Request
from pmd.benchmarks.edge.million import best_of, exact_scores, open_table, queries_of
from pmd.benchmarks.latency import laps_ns, summary_ms
from pmd.benchmarks.questions import TOP
from pmd.serving.near import CONNECTIVITY, EXPANSION_ADD, EXPANSIONS, NearIndex, new_index
from pmd.serving.ranking import FloatArray
from pmd.serving.search import Found, Search


def measure_ann(request: Request) -> Answer:
    """An HNSW index over the first `rows` vectors of the table in `folder`, built and asked as the runtime does.

    Building uses `threads`, asking one. Queries go through `Search`, which scores exactly what the index names.
    Recall is the share of the ten best by float64 scores among the ten found. Raises MissingExtra without usearch.
    """
    whole = open_table(Path(request["folder"]))
    rows = min(int(request["rows"]), len(whole))
    table = whole if rows == len(whole) else whole.take(np.arange(rows))
    begin = time.perf_counter()
    index = new_index(table, request["threads"])
    seconds = time.perf_counter() - begin
    queries = queries_of(request["queries"], table.width)
    exact = np.argsort(-exact_scores(table, queries), axis=1)[:, :TOP]
    asked: list[Answer] = []
    for expansion in EXPANSIONS:
        near = NearIndex(index, {"expansion_search": expansion, "recall": 0.0, "questions": 0})
        search = Search(table, threads=1, near=near)
        laps = laps_ns(partial(_ask, search), list(queries), warmup=len(queries))
        found = [indices for indices, _ in best_of(search, queries)]
        hits = [len(np.intersect1d(one, other)) for one, other in zip(exact, found, strict=True)]
        asked.append(
            {
                "expansion_search": expansion,
                "query_ms": summary_ms(laps),
                "recall_at_10": float(np.mean(hits)) / TOP,
            }
        )
    return {
        "rows": rows,
        "whole_table": rows == len(whole),
        "build_seconds": seconds,
        "build_threads": request["threads"],
        "connectivity": CONNECTIVITY,
        "expansion_add": EXPANSION_ADD,
        "memory_bytes": int(index.memory_usage),
        "searches": asked,
    }


def _ask(search: Search, query: FloatArray) -> list[Found]:
    return best_of(search, query[None])
