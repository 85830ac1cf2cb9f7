"""One bundle, one row: measured in child processes; whatever goes wrong becomes the row's error."""

from __future__ import annotations

import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pmd.benchmarks import discovery, machine
from pmd.benchmarks.errors import MeasureError
from pmd.serving.errors import PmdError

Row: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]
Tick: TypeAlias = Callable[[str], None]
"""Told what comes next, for progress."""

CHILD = (sys.executable, "-m", "pmd.benchmarks.child")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
UNMEASURED: Row = {
    "bundle_bytes": None,
    "answering_bytes": None,
    "query_ms": {"p50": None, "p95": None, "p99": None, "mean": None},
    "batch_queries_per_second": None,
    "batches": None,
    "cold_start_ms": None,
    "peak_rss_bytes": None,
    "private_dirty_bytes": None,
    "metrics": None,
    "metrics_reranked": None,
    "mrr_kept": None,
    "speedup": {"torch": None},
    "against": {},
    "mrr_of_teacher": None,
    "mrr_torch": None,
    "queries_timed": None,
    "repeats": None,
    "cores_busy": None,
    "disturbed": None,
    "disturbance": None,
    "intervals": None,
    "cold_start_runs_ms": None,
    "cold_start_parts_ms": None,
    "evaluate_seconds": None,
    "analysis": None,
    "against_fp32": None,
    "against_teacher": None,
    "growth": None,
    "error": None,
}
FROM_MANIFEST = (
    "dataset",
    "method",
    "stage",
    "grade",
    "precision",
    "encoder",
    "layers",
    "parameters",
    "seed",
)


@dataclass(frozen=True)
class Plan:
    """How every bundle of a report is measured."""

    split: str = "test"
    """Triples asked about and ranked: test or valid."""
    threads: int = 1
    """Threads of the runtime and of numpy in every child."""
    questions: int = 1000
    """Single questions timed, each as often as any other."""
    lap_limit_s: float = 5.0
    """How long they are repeated at most to know p50 to within 2 %; all are asked once however long it takes."""
    batches: int = 16
    """Batches of 64 questions timed."""
    cold_starts: int = 3
    """Fresh processes whose median is the cold start."""
    growth: bool = False
    """Whether latency is measured against the number of entities, up to a million synthetic ones."""
    ranks: Path | None = None
    """File in which a bundle's ranks are kept, for tests by pairs."""
    against: tuple[str, ...] = ()
    """Names of peers, of `peers.registry.PEERS`, that each bundle is timed beside."""
    run: Path | None = None
    """Run whose weights the peers take; None for the latest in `runs` that has the bundle's."""
    runs: Path = Path("runs")
    """Folder of run folders."""
    speed_limit_s: float = 900
    """A bundle still answering after this long is given up; at 1,000 questions that is 0.9 s each."""
    quality_limit_s: float = 4 * 3600
    """Limit of the evaluation, which may have tens of thousands of queries to encode on one core."""
    child: tuple[str, ...] = CHILD
    """Command of a child, to which the request is added."""

    @classmethod
    def quick(cls, **given: Any) -> Plan:
        """A first look: few questions and a single cold start; accuracy is still that of every triple."""
        return cls(questions=200, lap_limit_s=2.0, batches=4, cold_starts=1, **given)


def measure(bundle: Path, plan: Plan, tick: Tick = lambda _: None) -> Row:
    """The report's row of one bundle; never raises for a bundle that is broken, hangs or dies."""
    row: Row = {
        "bundle": Path(os.path.abspath(bundle)).name,
        **dict.fromkeys(FROM_MANIFEST),
        **copy.deepcopy(UNMEASURED),
    }
    try:
        facts = discovery.facts_of(bundle, FROM_MANIFEST)
        trained = facts.pop("trained")
        row |= facts
        for name, step in steps_of(plan).items():
            tick(f"{row['bundle']}: {name}")
            row |= step(bundle, plan, row)
        row |= _kept(row["metrics"]["mrr"], trained, plan.split)
    except (PmdError, OSError) as error:
        row["error"] = " ".join(str(error).split())
    row.pop("question", None)
    return row


def calibrate(plan: Plan) -> Answer:
    """Speed of a fixed loop at the plan's number of threads: `best_gflops` and `median_gflops`."""
    return run_child({"task": "calibrate"}, plan, plan.speed_limit_s)


def run_child(request: Mapping[str, Any], plan: Plan, limit_s: float) -> Answer:
    """Answer of a fresh child process.

    Raises MeasureError if the child fails, dies, or still runs after `limit_s` seconds (it is ended then).
    """
    request = {"threads": plan.threads, **request, "started_ns": time.perf_counter_ns()}
    try:
        done = subprocess.run(
            [*plan.child, json.dumps(request)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit_s,
            env=environment(plan.threads),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{request['task']}: no answer within {limit_s:g} s, given up") from error
    answer = _last_object(done.stdout)
    if answer is None:
        raise MeasureError(f"{request['task']}: {death(done)}")
    if "error" in answer:
        raise MeasureError(answer["error"])
    return answer


def _speed(bundle: Path, plan: Plan, _: Row) -> Row:
    asked = {name: getattr(plan, name) for name in ("split", "questions", "lap_limit_s", "batches")}
    return run_child({"task": "speed", "bundle": str(bundle), **asked}, plan, plan.speed_limit_s)


def _cold(bundle: Path, plan: Plan, row: Row) -> Row:
    """Median of several fresh processes; the files are in the page cache by then."""
    request = {"task": "cold", "bundle": str(bundle), "question": row["question"]}
    runs = [run_child(request, plan, plan.speed_limit_s) for _ in range(plan.cold_starts)]
    middle = statistics.median_low(run["cold_start_ms"] for run in runs)
    parts = next(run["parts_ms"] for run in runs if run["cold_start_ms"] == middle)
    return {
        "cold_start_ms": middle,
        "cold_start_runs_ms": [run["cold_start_ms"] for run in runs],
        "cold_start_parts_ms": parts,
    }


def _quality(bundle: Path, plan: Plan, _: Row) -> Row:
    kept = None if plan.ranks is None else str(plan.ranks)
    request = {"task": "quality", "bundle": str(bundle), "split": plan.split, "ranks": kept}
    return run_child(request, plan, plan.quality_limit_s)


def _growth(bundle: Path, plan: Plan, _: Row) -> Row:
    request = {"task": "growth", "bundle": str(bundle), "split": plan.split, "free_bytes": machine.free_bytes()}
    return run_child(request, plan, plan.speed_limit_s)


STEPS: dict[str, Callable[[Path, Plan, Row], Row]] = {
    "accuracy": _quality,  # first: it checks every file, and leaves them all in the page cache
    "speed and memory": _speed,
    "cold start": _cold,
}


def steps_of(plan: Plan) -> dict[str, Callable[[Path, Plan, Row], Row]]:
    """What is measured of each bundle, by name, in order."""
    return {**STEPS, "growth": _growth} if plan.growth else STEPS


def _kept(mrr: float, trained: Mapping[str, Any], split: str) -> Row:
    """What export kept of the grade's MRR in torch, and what is left of the teacher's; null where unknown."""
    torch_mrr = (trained.get(split) or {}).get("mrr")
    teacher_mrr = trained.get("teacher_test_mrr") if split == "test" else None
    return {
        "mrr_torch": torch_mrr,
        "mrr_kept": mrr / torch_mrr if torch_mrr else None,
        "mrr_of_teacher": mrr / teacher_mrr if teacher_mrr else None,
    }


def environment(threads: int) -> dict[str, str]:
    """The environment with every library's thread pool set to `threads` before the library is loaded."""
    pinned = dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"RAYON_NUM_THREADS": str(threads)}
    if threads == 1:
        pinned["TOKENIZERS_PARALLELISM"] = "false"
    return {**os.environ, **pinned}


def _last_object(stdout: str) -> Answer | None:
    """The JSON object of the last line, if that is what it is."""
    lines = stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return answer if isinstance(answer, dict) else None


def death(done: subprocess.CompletedProcess[str]) -> str:
    """How a child ended that left no answer."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    told = done.stderr.strip().splitlines()
    return f"exit code {done.returncode}: {told[-1] if told else 'nothing on stderr'}"
