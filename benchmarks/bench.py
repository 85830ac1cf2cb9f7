"""One bench from the first calibration to the finished report, before anything is written."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pmd.benchmarks import case, machine, report
from pmd.benchmarks.case import Plan, Tick
from pmd.benchmarks.report import Report


def bench(
    bundles: Sequence[Path],
    plan: Plan,
    *,
    dataset: str | None = None,
    quick: bool = False,
    tick: Tick = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Measure every bundle, one after the other, and build the report.

    A bundle that fails becomes a row with `error`. Raises MeasureError if not even the calibration runs.
    """
    started_at, begin = datetime.now(UTC).isoformat(timespec="seconds"), clock()
    facts = machine.fingerprint(plan.threads)
    tick("calibration")
    before = case.calibrate(plan)
    rows = [case.measure(bundle, plan, tick) for bundle in bundles]
    tick("calibration")
    after = case.calibrate(plan)
    return report.build(
        rows,
        facts,
        report.noise(before, after),
        plan,
        dataset=dataset,
        command=repeat_command(bundles, plan, quick=quick),
        started_at=started_at,
        quick=quick,
        seconds=round(clock() - begin, 3),
    )


def ticks_of(bundles: Sequence[Path]) -> int:
    """How often `bench` tells what comes next, at most."""
    return 2 + len(case.STEPS) * len(bundles)


def repeat_command(bundles: Sequence[Path], plan: Plan, *, quick: bool) -> str:
    """The command line that repeats a bench."""
    options = ["--split", plan.split, "--threads", str(plan.threads), *(["--quick"] if quick else [])]
    return shlex.join(["pmd-bench", *(str(bundle) for bundle in bundles), *options])
