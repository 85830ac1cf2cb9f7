"""Search in a large synthetic table, mapped as a bundle's, beside the speed at which this core reads memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from pmd.benchmarks.edge.child import Answer, Request
from pmd.benchmarks.errors import MeasureError
from pmd.benchmarks.latency import summary_ms
from pmd.benchmarks.questions import TOP
from pmd.serving.archive import FolderSource, npy_array
from pmd.serving.bundle import SCALES, VECTORS
from pmd.serving.ranking import FloatArray
from pmd.serving.search import Found, Search, Wish
from pmd.serving.vectors import VectorTable

CHUNK = 50_000  # x 384 float32 are 77 MB
CLUSTERS = 2_000
WARMUP = 3
SCORE_GAP = 1e-6
"""Exact scores closer than this are one score: float32 keeps no more of them."""


def write_table(request: Request) -> Answer:
    """Write `rows` int8 unit vectors of `width` into `folder`, as a bundle keeps them; the same on every machine.

    Vectors stand around 2,000 random centres, at a cosine of about 0.7, as entities of a kind do: in a table of
    plain noise no index finds anything, and no two answers are near each other.
    """
    folder, rows, width = Path(request["folder"]), int(request["rows"]), int(request["width"])
    values = np.lib.format.open_memmap(folder / VECTORS, "w+", np.int8, (rows, width), fortran_order=True)
    scales = np.empty(rows, np.float32)
    for first in range(0, rows, CHUNK):
        part = slice(first, min(first + CHUNK, rows))
        table = VectorTable.quantised(around_centres(part.stop - first, width, seed=first))
        values[part] = table.values
        scales[part] = np.asarray(table.scales)
    values.flush()
    np.save(folder / SCALES, scales)
    return {"rows": rows, "width": width, "bytes": rows * width}


def around_centres(count: int, width: int, seed: int) -> FloatArray:
    """`count` unit vectors around the common centres, float32 (count, width)."""
    centres = _unit(np.random.default_rng(0).standard_normal((CLUSTERS, width), dtype=np.float32))
    rng = np.random.default_rng([1, seed])
    noise = _unit(rng.standard_normal((count, width), dtype=np.float32))
    return _unit(centres[rng.integers(CLUSTERS, size=count)] + noise)


def queries_of(count: int, width: int) -> FloatArray:
    """`count` queries, drawn as the table is but not in it, float32 (count, width)."""
    return around_centres(count, width, seed=2**40)


def open_table(folder: Path) -> VectorTable:
    """The table as a bundle's is opened: mapped, nothing read yet."""
    source = FolderSource(folder)
    values, scales = (npy_array(source.mapped(name), name) for name in (VECTORS, SCALES))
    return VectorTable(values, scales)


def measure_search(request: Request) -> Answer:
    """Load, speed and exactness of searching the table in `folder` with `queries` queries, one thread.

    The file is in the page cache. Laps of search and of reading as many bytes take turns: `read_gb_s` sums a plain
    array in memory as 64-bit numbers, `mapped_gb_s` the mapped file itself. `ratio` sets the best lap of search
    against the best of reading, for on a shared machine the rest of them tell of others, `ratio_mapped` against the
    best of the mapped file, whose small pages cost time of their own; `ratio_of_medians` is `ratio` of medians.
    `exact` compares the ten best of `checked` queries with float64 scores of all.
    """
    folder = Path(request["folder"])
    _touch(folder)
    import_module("onnxruntime")  # a start's cost, not a table's
    begin = time.perf_counter()
    table = open_table(folder)
    opened = time.perf_counter()
    search = Search(table, threads=1)
    ready = time.perf_counter()
    queries = queries_of(request["queries"], table.width)
    asked = time.perf_counter()
    best_of(search, queries[:1])
    first = time.perf_counter()
    size = len(table) * table.width
    laps = _in_turn(size, folder, queries, lambda query: best_of(search, query))
    speeds = {name: size / np.array(times) for name, times in laps.items()}  # bytes a ns, which is GB/s
    best, middle = ({name: float(f(of)) for name, of in speeds.items()} for f in (np.max, np.median))
    return {
        "load_seconds": ready - begin,
        "open_seconds": opened - begin,
        "first_search_ms": (first - asked) * 1e3,
        "query_ms": summary_ms(np.array(laps["search"])) | {"best": min(laps["search"]) / 1e6},
        "search_gb_s": best["search"],
        "read_gb_s": best["read"],
        "mapped_gb_s": best["mapped"],
        "median_gb_s": middle,
        "ratio": best["search"] / best["read"],
        "ratio_mapped": best["search"] / best["mapped"],
        "ratio_of_medians": middle["search"] / middle["read"],
        "how": search.about,
        "exact": exactness(table, queries[: request["checked"]], best_of(search, queries[: request["checked"]])),
    }


def best_of(search: Search, queries: FloatArray) -> list[Found]:
    """The ten best of each query (Q, D): indices and scores."""
    return search.best(queries, [Wish(TOP)] * len(queries))


def exactness(table: VectorTable, queries: FloatArray, found: Sequence[Found]) -> Answer:
    """How many queries' ten best are those of exact float64 scores, and how far scores are off.

    `same` counts equal lists; `as_good` lists whose scores are those of the exact ten best, within 1e-6, in order.
    `max_score_gap` is between the exact scores of both lists, `max_score_error` between a score given and the exact
    one. Raises MeasureError if a list is not of ten.
    """
    exact = exact_scores(table, queries)
    same = as_good = 0
    gap = error = 0.0
    for scores, (indices, given) in zip(exact, found, strict=True):
        if len(indices) != TOP:
            raise MeasureError(f"a query had {len(indices)} answers, expected {TOP}")
        wanted = np.lexsort((np.arange(len(scores)), -scores))[:TOP]
        same += bool((wanted == indices).all())
        apart = float(np.abs(scores[wanted] - scores[indices]).max())
        as_good += apart <= SCORE_GAP
        gap, error = max(gap, apart), max(error, float(np.abs(scores[indices] - given).max()))
    return {
        "queries": len(queries),
        "same": same,
        "as_good": as_good,
        "max_score_gap": gap,
        "max_score_error": error,
    }


def exact_scores(table: VectorTable, queries: FloatArray) -> FloatArray:
    """float64 scores of queries (Q, D) with every entity: (Q, E)."""
    out = np.empty((len(queries), len(table)))
    for first in range(0, len(table), CHUNK):
        part = slice(first, min(first + CHUNK, len(table)))
        out[:, part] = queries.astype(np.float64) @ dequantised(table, part).astype(np.float64).T
    return out


def dequantised(table: VectorTable, part: slice) -> FloatArray:
    """Some vectors of the table, float32 (N, D), row after row."""
    return np.array(table.values[part], dtype=np.float32, order="C") * np.asarray(table.scales)[part, None]


def _in_turn(
    size: int, folder: Path, queries: FloatArray, answer: Callable[[FloatArray], object]
) -> dict[str, list[int]]:
    """Nanoseconds of each lap: a search, the sum of `size` bytes of memory, the sum of the mapped file."""
    plain = np.ones(size // 8, np.uint64)
    file = FolderSource(folder).mapped(VECTORS)
    mapped = file[len(file) % 8 :].view(np.uint64)
    laps: dict[str, list[int]] = {"search": [], "read": [], "mapped": []}
    ways: dict[str, Callable[[int], object]] = {
        "search": lambda number: answer(queries[number : number + 1]),
        "read": lambda _: plain.sum(),
        "mapped": lambda _: mapped.sum(),
    }
    for number in range(-WARMUP, len(queries)):
        for name, way in ways.items():
            start = time.perf_counter_ns()
            way(max(0, number))
            if number >= 0:
                laps[name].append(time.perf_counter_ns() - start)
    return laps


def _touch(folder: Path) -> None:
    """Read the files once, so that they are in the page cache."""
    for name in (VECTORS, SCALES):
        for _ in _pieces(folder / name):
            pass


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(1 << 24):
            yield piece


def _unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
