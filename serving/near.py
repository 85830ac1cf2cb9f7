"""An index for graphs too large to pass over: it names likely answers, and their exact scores decide.

`python -m pmd.serving.near BUNDLE --out FILE` builds it with usearch (HNSW over int8 vectors, cosine) and measures
on questions of the bundle's own graph which share of the exact ten best it finds; `Scorer.load(BUNDLE, near=FILE)`
uses it. Scores and their order are exact; an answer may be missing, as often as `recall` says. Questions about some
entities only, and those over rows that changed, are answered exactly all the same.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from pmd.serving import extras
from pmd.serving.bundle import QUERY, Bundle
from pmd.serving.command import HELP, Command, NumberRange, emit, show_progress
from pmd.serving.cores import default_threads
from pmd.serving.encoder import TowerEncoder
from pmd.serving.errors import ServingError
from pmd.serving.journal import fingerprint
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray
from pmd.serving.search import NEAR_MARGIN
from pmd.serving.snapshot import Snapshot
from pmd.serving.storage import atomic_file, sha256_of, write_atomic
from pmd.serving.vectors import VectorTable, top_k

if TYPE_CHECKING:
    from usearch.index import Index

SCHEMA = "pmd-near/1"
TOP = 10
CONNECTIVITY, EXPANSION_ADD = 16, 128  # usearch's own defaults
EXPANSIONS = (64, 128, 256, 512, 1024)  # how widely to search, the first that finds enough is taken
QUESTIONS = 200
CHUNK = 10_000
EPILOG = """\b
Example:
  python -m pmd.serving.near bundles/products-pmd-grade-3-int8 --out products.near --recall 0.98
"""


class NearError(ServingError):
    """An index is damaged, or of another bundle."""


class NearIndex:
    """An open index over a bundle's table; safe to share between threads."""

    def __init__(self, index: Index, facts: dict[str, Any]) -> None:
        """facts: what its description file says."""
        self._index, self._lock = index, threading.Lock()  # usearch has a fixed number of places for searchers
        index.expansion_search = facts["expansion_search"]  # type: ignore[misc]
        found = f"{facts['recall']:.3f} of the {TOP} best found on {facts['questions']} questions"
        self.about = f"usearch, {found}, exact scores"

    @classmethod
    def open(cls, path: Path, bundle: Bundle, *, verify: bool = False) -> NearIndex:
        """Map the index of a bundle. verify: check its sha256.

        Raises MissingExtra without usearch, NearError if it is damaged or of another bundle.
        """
        extras.require("ann", "usearch")
        from usearch.index import Index

        facts = _facts(path)
        if facts["bundle"] != fingerprint(bundle.manifest_bytes()):
            raise NearError(f"{path} is of another bundle than {bundle.path}; build it again")
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise NearError(f"{path} is not the index that {_about_file(path).name} describes; build it again")
        if verify and sha256_of(path) != facts["sha256"]:
            raise NearError(f"{path} was changed or damaged; build it again")
        index = Index.restore(str(path), view=True)
        table = bundle.tables.vectors
        if index is None or index.ndim != table.width or len(index) != len(table):
            raise NearError(f"{path} does not hold {len(table)} vectors of {table.width} numbers; build it again")
        return cls(index, facts)

    def candidates(self, query: FloatArray, count: int) -> IntArray:
        """Indices of some `count` entities near to a query (D,), int64, rising."""
        with self._lock:
            found = self._index.search(query.astype(np.float32), count, threads=1)
        return np.sort(np.asarray(found.keys).astype(np.int64))


def new_index(table: VectorTable, threads: int, progress: Callable[[int], None] = lambda done: None) -> Index:
    """An index over every vector of a table, by its row. Raises MissingExtra without usearch."""
    extras.require("ann", "usearch")
    from usearch.index import Index

    index = Index(
        ndim=table.width, metric="cos", dtype="i8", connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD
    )
    for first in range(0, len(table), CHUNK):
        rows = np.arange(first, min(first + CHUNK, len(table)))
        index.add(rows, np.ascontiguousarray(table.take(rows).vectors()), threads=threads)
        progress(len(rows))
    return index


def build_near(
    bundle: Bundle,
    path: Path,
    *,
    recall: float = 0.99,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Build the index of a bundle's vectors into `path`, described in `path`.json; returns the description.

    recall: the share of exact answers to aim for, measured on questions of the bundle's valid and test split (of
    its training split where it has no other). progress: told how many vectors are in. Raises MissingExtra.
    """
    table, threads = bundle.tables.vectors, threads or default_threads()
    start = time.perf_counter()
    index = new_index(table, threads, progress)
    seconds = time.perf_counter() - start
    queries = _questions(bundle, threads)
    exact = [top_k(scores, TOP) for scores in table.scores(queries)]
    expansion, found = _wide_enough(index, table, queries, exact, recall)
    with atomic_file(path) as partial:
        index.save(str(partial))
    facts = {
        "schema": SCHEMA,
        "bundle": fingerprint(bundle.manifest_bytes()),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "entities": len(table),
        "expansion_search": expansion,
        "recall": found,
        "questions": len(queries),
        "build_seconds": round(seconds, 3),
    }
    write_atomic(_about_file(path), (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def _wide_enough(
    index: Index, table: VectorTable, queries: FloatArray, exact: Sequence[IntArray], recall: float
) -> tuple[int, float]:
    """The first of EXPANSIONS that finds `recall` of the exact answers, or the last, and what it finds."""
    expansion, share = EXPANSIONS[0], 0.0
    for expansion in EXPANSIONS:
        index.expansion_search = expansion  # type: ignore[misc]
        matches = [index.search(query, min(TOP + NEAR_MARGIN, len(table)), threads=1).keys for query in queries]
        hits = [np.isin(best, keys).mean() for best, keys in zip(exact, matches, strict=True)]
        share = float(np.mean(hits))
        if share >= recall:
            break
    return expansion, share


def _questions(bundle: Bundle, threads: int) -> FloatArray:
    """Vectors of questions of the bundle's graph, spread over its splits, float32 (N, D)."""
    known = bundle.tables.known
    triples = np.concatenate([known.triples(2), known.triples(1)])
    triples = triples if len(triples) else known.triples(0)
    chosen = triples[np.unique(np.linspace(0, len(triples) - 1, min(QUESTIONS, len(triples))).astype(int))]
    texts = Snapshot.of(bundle.tables, bundle.templates).texts.queries(chosen[:, 0], chosen[:, 1])
    return TowerEncoder.load(bundle, QUERY, threads=threads)(texts)


def _about_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _facts(path: Path) -> dict[str, Any]:
    about = _about_file(path)
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NearError(f"{about} cannot be read ({error}); build the index again") from error
    kinds = {"bundle": str, "bytes": int, "sha256": str, "expansion_search": int, "recall": float, "questions": int}
    if (
        not isinstance(facts, dict)
        or facts.get("schema") != SCHEMA
        or any(type(facts.get(key)) is not kind for key, kind in kinds.items())
    ):
        raise NearError(f"{about} does not describe an index of schema {SCHEMA!r}; build the index again")
    return facts


@click.command(name="python -m pmd.serving.near", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.argument("bundle", type=click.Path())
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write, and FILE.json.")
@click.option("--recall", type=NumberRange(0, 1), default=0.99, show_default=True, help="Share of answers to find.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads to build with.  [default: the usable cores]")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def main(bundle: str, out: Path, recall: float, threads: int | None, quiet: bool) -> None:
    """Build an index for fast approximate search over the entities of BUNDLE (a folder or .zip).

    Worth it beyond a million entities; up to there every answer is found exactly in tens of milliseconds. The last
    line of stdout is one JSON object.
    """
    opened = Bundle.open(bundle)
    bar = click.progressbar(
        length=len(opened.tables.vectors), label="vectors", file=sys.stderr, hidden=not show_progress(quiet)
    )
    with bar:
        facts = build_near(opened, out, recall=recall, threads=threads, progress=bar.update)
    emit({**facts, "path": str(out)})


if __name__ == "__main__":
    main()
