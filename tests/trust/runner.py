"""Runs attacks, each in a process of its own: one that crashes or hangs is a finding, not the end."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
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
COMMAND = (sys.executable, "-m", "tests.trust")
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
            **_unmade(attack),
            "cases": tally.cases,
            "outcomes": dict(sorted(tally.outcomes.items())),
            "failed": tally.failed_cases,
            "failures": tally.failures,
            "figures": tally.figures,
            "seconds": round(time.monotonic() - started, 1),
        }


def make_apart(attack: Attack, count: int, seed: int, command: Sequence[str] = COMMAND) -> dict[str, Any]:
    """The same in a child process; its crash, its hang and its traceback are failures of the attack."""
    reason = attack.skip()
    if reason is not None:
        return {**_unmade(attack), "skipped": reason}
    limit = attack.limit_seconds * max(1.0, PATIENCE * count / attack.quick)
    started = time.monotonic()

    def broken(why: str) -> dict[str, Any]:
        return {
            **_unmade(attack),
            "failed": 1,
            "failures": [why],
            "seconds": round(time.monotonic() - started, 1),
        }

    child = subprocess.Popen(
        [*command, "--one", attack.name, "--count", str(count), "--seed", str(seed)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # what it started, too
        child.communicate()
        return broken(f"still running after {limit:.0f} s")
    if child.returncode != 0 or not out.strip():
        said = err.strip().splitlines()[-1:] or ["nothing on stderr"]
        return broken(f"the attack itself ended with {child.returncode}: {said[0]}")
    finding: dict[str, Any] = json.loads(out.splitlines()[-1])
    return finding


def _unmade(attack: Attack) -> dict[str, Any]:
    nothing = {"cases": 0, "outcomes": {}, "failed": 0, "failures": [], "figures": {}, "seconds": 0.0}
    return {**attack.facts(), **nothing}


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
