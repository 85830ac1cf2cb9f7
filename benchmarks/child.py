"""One measurement in a process of its own: `python -m pmd.benchmarks.child REQUEST`.

REQUEST is a JSON object with `task` and what the task needs; the last line of stdout is the answer, a JSON
object, with `error` where the measurement failed. The process loads what a device that answers would load and
nothing of the report, so its memory and its start are those of the runtime. Threads are pinned by the parent
through the environment, before any library is loaded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pmd.benchmarks.questions import Question
    from pmd.serving.bundle import Verify
    from pmd.serving.scorer import Scorer

Request: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
BATCH = BATCH_SIZES[-1]
SMALLER_SHARE = 8
"""Smaller batches ask an eighth of the questions that the largest ones do: there are six sizes of them."""
MATMUL_SIDE, MATMUL_LAPS = 1024, 9


def main(argv: Sequence[str]) -> int:
    """Do what `argv[0]` asks, write the answer to stdout; 0 done, 1 failed."""
    entered_ns = time.perf_counter_ns()
    request = json.loads(argv[0])
    try:
        answer = TASKS[request["task"]](request | {"entered_ns": entered_ns})
    except Exception as error:  # the process boundary: whatever went wrong becomes a row of the report
        answer = {"error": _message(error)}
    sys.stdout.write(json.dumps(answer, allow_nan=False) + "\n")
    return 1 if "error" in answer else 0


def cold(request: Request) -> Answer:
    """Milliseconds from just before this process was started to its first answer, and where they went.

    `started_ns` is the parent's reading of the same system-wide clock.
    """
    from pmd.benchmarks.questions import Question

    question = Question(**request["question"])  # importing it has imported the runtime, all but onnxruntime
    imported_ns = time.perf_counter_ns()
    scorer = _load(request)
    loaded_ns = time.perf_counter_ns()
    question.ask(scorer)
    answered_ns = time.perf_counter_ns()
    marks = [request["started_ns"], request["entered_ns"], imported_ns, loaded_ns, answered_ns]
    names = ("interpreter", "imports", "load", "first_answer")
    parts = {name: (end - start) / 1e6 for name, start, end in zip(names, marks[:-1], marks[1:], strict=True)}
    return {"cold_start_ms": (answered_ns - marks[0]) / 1e6, "parts_ms": parts}


def speed(request: Request) -> Answer:
    """Latency of single questions, memory of a process that did just those, then throughput in batches.

    `lap_limit_s` bounds how long single questions are repeated; see `latency.laps_until`.
    """
    from pmd.benchmarks import questions
    from pmd.benchmarks.disturbance import Beats
    from pmd.benchmarks.latency import WANTED_PERCENT, intervals_ms, laps_until, summary_ms, warm_up
    from pmd.benchmarks.memory import peak_rss_bytes, private_dirty_bytes

    scorer = _load(request)
    asked = questions.of_split(scorer, request["split"], request["questions"])
    beats = Beats()
    warm = warm_up(lambda question: question.ask(scorer), asked)
    begin_cpu, begin = time.process_time_ns(), time.perf_counter_ns()
    repeats = laps_until(
        lambda question: question.ask(scorer), asked, limit_s=request["lap_limit_s"], between=beats
    )
    cores_busy = (time.process_time_ns() - begin_cpu) / (time.perf_counter_ns() - begin)
    memory = {"peak_rss_bytes": peak_rss_bytes(), "private_dirty_bytes": private_dirty_bytes()}
    return {
        "query_ms": summary_ms(repeats.laps),
        "queries_timed": len(repeats.laps),
        "repeats": {
            "warmup_questions": warm.calls,
            "warmed_up": warm.stable,
            "passes": repeats.passes,
            "p50_half_width_percent": repeats.half_width_percent,
            "wanted_percent": WANTED_PERCENT,
            "reached": repeats.reached,
        },
        "cores_busy": cores_busy,
        **beats.figures(cores_busy, request["threads"]),
        **memory,  # read before the batches, which need more
        **_throughput(scorer, asked, request["batches"], intervals_ms(repeats.laps)),
        "question": asdict(asked[0]),
    }


def _throughput(scorer: Scorer, asked: Sequence[Question], count: int, of_laps: Mapping[str, Any]) -> Answer:
    """Questions a second in batches of 1 to 64, `count` of the largest; and the intervals of all times."""
    from pmd.benchmarks import questions
    from pmd.benchmarks.latency import laps_ns, rate_interval

    found = []
    for size in BATCH_SIZES:
        wanted = count if size == BATCH else max(2, count * BATCH // SMALLER_SHARE // size)
        batches = questions.batches(asked, size, wanted)
        laps = laps_ns(lambda batch: questions.ask_batch(scorer, batch), batches, warmup=2)
        rate = size * len(batches) / (float(laps.sum()) / 1e9)
        found.append({"size": size, "queries_per_second": rate, "interval": rate_interval(laps, size)})
    return {
        "batches": found,
        "batch_queries_per_second": found[-1]["queries_per_second"],
        "intervals": {
            **{f"query_ms.{name}": ends for name, ends in of_laps.items()},
            "batch_queries_per_second": found[-1]["interval"],
        },
    }


def growth(request: Request) -> Answer:
    """Latency against the number of entities, with synthetic vectors; `free_bytes` bounds the largest table."""
    from pmd.benchmarks.growth import growth as measured
    from pmd.serving.bundle import Bundle

    wanted = {name: request[name] for name in ("split", "threads", "free_bytes")}
    return {"growth": measured(Bundle.open(request["bundle"]), **wanted)}


def quality(request: Request) -> Answer:
    """Filtered metrics of the bundle as exported, plain, in parts, and re-ranked where the manifest says how.

    `ranks`, if given: a file to keep the ranks in, for tests by pairs.
    """
    from pmd.benchmarks.pairs import write_ranks
    from pmd.serving.analysis import analyse
    from pmd.serving.known import SPLIT_NAMES
    from pmd.serving.ranking import metrics_of, rank_triples

    scorer = _load(request, verify=True)  # figures of a damaged bundle would pass for figures of the model
    begin = time.perf_counter_ns()
    triples = scorer.known.triples(SPLIT_NAMES.index(request["split"]))
    ranks = rank_triples(scorer.split_scores(request["split"]), triples, scorer.known)
    metrics = metrics_of(ranks)
    if request.get("ranks"):
        write_ranks(Path(request["ranks"]), ranks, triples)
    seconds = (time.perf_counter_ns() - begin) / 1e9
    reranks = bool(scorer.bundle.manifest.get("rerank"))
    reranked = scorer.evaluate(request["split"], reranked=True) if reranks else None
    analysis = analyse(ranks, triples, scorer.known)
    names = [*scorer.relation_ids, *(f"inverse {relation}" for relation in scorer.relation_ids)]
    analysis["by_relation"] = {names[int(number)]: part for number, part in analysis["by_relation"].items()}
    return {"metrics": metrics, "metrics_reranked": reranked, "evaluate_seconds": seconds, "analysis": analysis}


def calibrate(_: Request) -> Answer:
    """How fast a fixed loop runs now: float32 matrix products of side 1024, best and median of nine."""
    import numpy as np

    from pmd.benchmarks.latency import laps_ns

    left, right = np.random.default_rng(0).random((2, MATMUL_SIDE, MATMUL_SIDE), dtype=np.float32)
    laps = laps_ns(lambda _: left @ right, range(MATMUL_LAPS), warmup=2)
    work = 2 * MATMUL_SIDE**3  # floating-point operations; per ns that is GFLOP/s
    return {"best_gflops": work / float(laps.min()), "median_gflops": work / float(np.median(laps))}


def _load(request: Request, *, verify: Verify = "used") -> Scorer:
    """The bundle's Scorer, with no cache of queries whatever its default: every timed question is encoded.

    verify: check every file's sha256 and every vector's length, which is more than a device does, so not where
    memory or time is measured; there the files that are used are checked, as by default.
    """
    from pmd.serving.scorer import Scorer

    return Scorer.load(request["bundle"], threads=request["threads"], cached_queries=0, verify=verify)


def _message(error: Exception) -> str:
    """One line; our own errors speak for themselves, others are named."""
    from pmd.serving.errors import PmdError

    text = " ".join(str(error).split())
    return text if isinstance(error, PmdError) else f"{type(error).__name__}: {text}"


TASKS: dict[str, Callable[[Request], Answer]] = {
    "cold": cold,
    "speed": speed,
    "quality": quality,
    "growth": growth,
    "calibrate": calibrate,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
