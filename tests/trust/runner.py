"""Runs attacks, each in a process of its own: one that crashes or hangs is a finding, not the end."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tests.trust
from tests.trust.attack import Attack, Ground

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1.5
"""How much longer than its share an attack of another count may take."""


def all_attacks() -> dict[str, Attack]:
    """Every attack of this package, by name: those of the `ATTACKS` of its modules."""
    found: dict[str, Attack] = {}
    for module in sorted(module.name for module in pkgutil.iter_modules(tests.trust.__path__)):
        if module == "__main__":
            continue
        for attack in getattr(importlib.import_module(f"tests.trust.{module}"), "ATTACKS", ()):
            if attack.name in found:
                raise ValueError(f"two attacks are named {attack.name}")
            found[attack.name] = attack
    return found


def make(attack: Attack, count: int, seed: int) -> dict[str, Any]:
    """The finding of one attack, made in this process."""
    with tempfile.TemporaryDirectory(prefix="trust-") as folder:
        started = time.monotonic()
        tally = attack.run(Ground(count, seed, Path(folder)))
        return {
            **attack.facts(),
            "cases": tally.cases,
            "outcomes": dict(sorted(tally.outcomes.items())),
            "failed": tally.failed_cases,
            "failures": tally.failures,
            "figures": tally.figures,
            "seconds": round(time.monotonic() - started, 1),
        }


def make_apart(attack: Attack, count: int, seed: int) -> dict[str, Any]:
    """The same in a child process; its crash, its hang and its traceback are failures of the attack."""
    empty = {
        **attack.facts(),
        "cases": 0,
        "outcomes": {},
        "failed": 0,
        "failures": [],
        "figures": {},
        "seconds": 0.0,
    }
    reason = attack.skip()
    if reason is not None:
        return {**empty, "skipped": reason}
    command = [
        sys.executable,
        "-m",
        "tests.trust",
        "--one",
        attack.name,
        "--count",
        str(count),
        "--seed",
        str(seed),
    ]
    limit = attack.limit_seconds * max(1.0, PATIENCE * count / attack.quick)
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return _broken(empty, f"still running after {limit:.0f} s", started)
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        return _broken(empty, f"the attack itself ended with {done.returncode}: {said[0]}", started)
    return json.loads(lines[-1])


def _broken(empty: dict[str, Any], why: str, started: float) -> dict[str, Any]:
    return {**empty, "failed": 1, "failures": [why], "seconds": round(time.monotonic() - started, 1)}


def make_all(
    attacks: Sequence[Attack],
    count_of: Callable[[Attack], int],
    seed: int,
    *,
    jobs: int,
) -> Iterator[dict[str, Any]]:
    """Findings as they come: `jobs` attacks side by side, then those that measure time, one after the other."""
    together = [attack for attack in attacks if not attack.alone]
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda attack: make_apart(attack, count_of(attack), seed), together)
    for attack in attacks:
        if attack.alone:
            yield make_apart(attack, count_of(attack), seed)
