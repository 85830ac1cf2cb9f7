"""What a child process runs: one measurement, asked for in JSON on the command line, answered in JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from pmd.benchmarks.loops.wanted import Wanted
from pmd.benchmarks.probe import tell


def answer() -> None:
    """Run the measurement that the arguments name: kind, setting and details as JSON. Prints one line of JSON."""
    kind, setting, details = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    tell(lambda: _measurements()[kind](Wanted(**setting), **details))


def _measurements() -> dict[str, Callable[..., Any]]:
    from pmd.benchmarks.loops.curves import measure_curve
    from pmd.benchmarks.loops.making import measure_making
    from pmd.benchmarks.loops.speed import measure_case, measure_memory

    return {"case": measure_case, "memory": measure_memory, "curve": measure_curve, "making": measure_making}
