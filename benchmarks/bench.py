"""One bench from the first calibration to the finished report, before anything is written."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pmd.benchmarks import case, machine, pairs, report
from pmd.benchmarks.case import Plan, Row, Tick
from pmd.benchmarks.peers.against import beside_peers
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
    with tempfile.TemporaryDirectory(prefix="pmd-bench-") as folder:
        files = [Path(folder) / f"{number}.npz" for number in range(len(bundles))]
        rows = [_row(bundle, replace(plan, ranks=file), tick) for bundle, file in zip(bundles, files, strict=True)]
        rows = pairs.paired(rows, files)
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


def _row(bundle: Path, plan: Plan, tick: Tick) -> Row:
    """A bundle's row, with its peers where the plan names any."""
    row = case.measure(bundle, plan, tick)
    if plan.against:
        tick(f"{row['bundle']}: beside {', '.join(plan.against)}")
        row |= beside_peers(bundle, row, plan)
    return row


def ticks_of(bundles: Sequence[Path], plan: Plan) -> int:
    """How often `bench` tells what comes next, at most."""
    return 2 + (len(case.steps_of(plan)) + bool(plan.against)) * len(bundles)


def repeat_command(bundles: Sequence[Path], plan: Plan, *, quick: bool) -> str:
    """The command line that repeats a bench."""
    options = ["--split", plan.split, "--threads", str(plan.threads), *(["--quick"] if quick else [])]
    options += ["--growth"] if plan.growth else []
    options += [word for name in plan.against for word in ("--against", name)]
    options += [] if plan.run is None else ["--run", str(plan.run)]
    return shlex.join(["pmd-bench", *(str(bundle) for bundle in bundles), *options])
