"""A bundle beside its peers: what a row of the report says of each, and why one was left out."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pmd.benchmarks import case, discovery
from pmd.benchmarks.case import Answer, Plan, Row
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.latency import summary_ms
from pmd.benchmarks.peers.ratios import ratio_of_medians
from pmd.benchmarks.peers.registry import OURS, PEERS, versions_of, why_missing
from pmd.benchmarks.peers.rounds import Rounds, take_rounds
from pmd.serving.errors import PmdError

CHILD = (sys.executable, "-m", "pmd.benchmarks.peers.child")
BUNDLE = "pmd"
"""The bundle's own name among the sides."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Every file is here: a peer that would ask a hub is wrong about that, and must not time the network."""
_NO_TIMES = {"p50": None, "p95": None, "p99": None, "mean": None}
UNCOMPARED: Row = {
    "query_ms": _NO_TIMES,
    "bundle_query_ms": _NO_TIMES,
    "ratio": None,
    "interval": None,
    "rounds": None,
    "cpu_ms": None,
    "ratio_cpu": None,
    "cores_busy": None,
    "shared_top": None,
    "versions": None,
    "skipped": None,
}


def beside_peers(bundle: Path, row: Row, plan: Plan) -> Row:
    """`speedup` and `against` of a bundle's row; what goes wrong is the reason why a peer was skipped.

    row: the bundle's, measured already; one that failed is not compared.
    """
    reasons, stage = _reasons(bundle, row, plan)
    names = [name for name in plan.against if name not in reasons]
    found: dict[str, Row] = {}
    if names:
        try:
            rounds = _rounds(bundle, names, stage, plan)
            reasons |= rounds.failed
            found = {name: _entry(rounds, name) for name in names if name in rounds.turns}
        except (PmdError, OSError) as error:  # of the bundle itself: then there is nothing to compare with
            reasons |= dict.fromkeys(names, f"{row['bundle']}: {' '.join(str(error).split())}")
    skipped = {name: copy.deepcopy(UNCOMPARED) | {"skipped": why} for name, why in reasons.items()}
    entries = {name: {**found, **skipped}[name] for name in plan.against}
    ratios = {name: entry["ratio"] for name, entry in entries.items()}
    return {"speedup": row["speedup"] | ratios, "against": entries}


def _reasons(bundle: Path, row: Row, plan: Plan) -> tuple[dict[str, str], Path | None]:
    """Why peers cannot take part, by name, and the folder of the torch weights, if there is one."""
    if row["error"]:
        return dict.fromkeys(plan.against, "the bundle itself could not be measured"), None
    reasons = {name: why for name in plan.against if (why := why_missing(PEERS[name]))}
    wanting = [name for name in plan.against if PEERS[name].weights and name not in reasons]
    if not wanting:
        return reasons, None
    try:
        return reasons, discovery.stage_of(bundle, plan.run, plan.runs)
    except (PmdError, OSError) as error:
        return reasons | dict.fromkeys(wanting, " ".join(str(error).split())), None


def _rounds(bundle: Path, names: Sequence[str], stage: Path | None, plan: Plan) -> Rounds:
    """The bundle and the peers in turn. Raises MeasureError if the bundle's own side fails."""
    with tempfile.TemporaryDirectory(prefix="pmd-bench-") as folder:
        asked = {"split": plan.split, "questions": plan.questions, "out": folder}
        child = replace(plan, child=CHILD)
        request: Answer = {"task": "material", "bundle": str(bundle), **asked}
        made = case.run_child(request, child, plan.speed_limit_s)
        shared = {"task": "side", "bundle": str(bundle), "query": made["query"], "material": folder}
        shared |= {"stage": None if stage is None else str(stage), "threads": plan.threads}
        makers = {BUNDLE: OURS, **{name: PEERS[name].maker for name in names}}
        return take_rounds(
            {name: {**shared, "side": name, "maker": maker} for name, maker in makers.items()},
            command=CHILD,
            environment=case.environment(plan.threads) | OFFLINE,
            questions=made["questions"],
            limit_s=plan.speed_limit_s,
        )


def _entry(rounds: Rounds, name: str) -> Row:
    """What the report says of a peer that answered every question."""
    theirs, ours = (_laps(rounds.turns[side]) for side in (name, BUNDLE))
    ratio, interval = ratio_of_medians(theirs, ours)
    cpu_ns, wall_ns = (sum(turn[key] for turn in rounds.turns[name]) for key in ("cpu_ns", "wall_ns"))
    own_cpu_ns = sum(turn["cpu_ns"] for turn in rounds.turns[BUNDLE])
    return {
        "query_ms": summary_ms(np.concatenate(theirs)),
        "bundle_query_ms": summary_ms(np.concatenate(ours)),
        "ratio": ratio,
        "interval": interval,
        "rounds": len(ours),
        "cpu_ms": cpu_ns / sum(map(len, theirs)) / 1e6,
        "ratio_cpu": cpu_ns / own_cpu_ns if own_cpu_ns else None,
        "cores_busy": cpu_ns / wall_ns,
        "shared_top": shared_top(rounds.tops[BUNDLE], rounds.tops[name]),
        "versions": versions_of(PEERS[name].distributions),
        "skipped": None,
    }


def _laps(turns: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    return [np.array(turn["laps_ns"], dtype=np.int64) for turn in turns]


def shared_top(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> float | None:
    """The mean share of the bundle's best answers that a peer names too; None where there are none."""
    shares = [len(set(one) & set(other)) / len(one) for one, other in zip(ours, theirs, strict=True) if one]
    return float(np.mean(shares)) if shares else None


def check_run(run: Path) -> None:
    """Raise BenchError unless a folder is a run."""
    if not (run / discovery.LADDER).is_file():
        raise BenchError(f"{run} is not a run: it has no {discovery.LADDER}; name a folder made by pmd-train")
