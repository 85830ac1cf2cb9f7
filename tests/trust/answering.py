"""What a bundle answers, as one JSON line: run by other Pythons, runtimes and processors, where no test package is.

    python answering.py BUNDLE...

It needs `pmd.serving` and nothing else. Vectors and scores are given by their bits.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
from importlib import metadata
from typing import Any

import numpy as np

from pmd.serving import PmdError, Scorer
from pmd.serving.bundle import QUERY
from pmd.serving.encoder import TowerEncoder
from pmd.serving.search import Search, Wish

QUESTIONS, ANSWERS, PROBES = 6, 5, 9
PACKAGES = ("onnxruntime", "numpy", "tokenizers")


def main(paths: list[str]) -> None:
    """Print what each bundle answers, or the error in its place."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    facts = {"python": platform.python_version(), "machine": platform.machine(), **versions}
    found = {path: _asked(path) for path in paths}
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**facts, "peak_rss_kib": peak_kib, "bundles": found}))  # noqa: T201


def _asked(path: str) -> dict[str, Any]:
    try:
        scorer = Scorer.load(path, threads=1)
        encoder = TowerEncoder.load(scorer.bundle, QUERY, threads=1)
    except PmdError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    relations, entities = scorer.relation_ids, scorer.entity_ids
    asked = [(entities[-1 - i], relations[i % len(relations)]) for i in range(min(QUESTIONS, len(entities)))]
    rows = scorer.bundle.tables
    names = {row.id: row.name for row in rows.entities}
    words = {row.id: row.text for row in rows.relations}
    vectors = encoder([(names[head], words[relation]) for head, relation in asked])
    answers = [scorer.top_tails(*question, k=ANSWERS, exclude_known=False) for question in asked]
    answers += [scorer.top_heads(relation, tail, k=ANSWERS, exclude_known=False) for tail, relation in asked]
    return {
        "vectors": vectors.astype("<f4").tobytes().hex(),
        "answers": [[(one.entity, float(one.score).hex()) for one in row] for row in answers],
        "about": scorer.search,
        "exact": _searched(rows.vectors),
    }


def _searched(table: Any) -> list[Any]:
    """Answers to vectors that no model made: these must be the same to the last bit everywhere."""
    steps = np.arange(PROBES * table.width, dtype=np.int64).reshape(PROBES, -1)
    queries = ((steps * 7919 % 2003) - 1001).astype(np.float64)
    queries /= np.sqrt((queries * queries).sum(axis=1, keepdims=True))
    found = Search(table, threads=1).best(queries.astype(np.float32), [Wish(ANSWERS)] * PROBES)
    return [[index.tolist(), scores.astype("<f4").tobytes().hex()] for index, scores in found]


if __name__ == "__main__":
    main(sys.argv[1:])
