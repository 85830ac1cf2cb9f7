"""What a child process runs: one measurement, asked for in JSON on the command line, answered in JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from pmd.benchmarks.loops.wanted import Wanted
from pmd.serving.errors import PmdError


def answer() -> None:
    """Run the measurement that the arguments name: kind, setting and details as JSON. Prints one line of JSON.

    A user's mistake is an answer too, {"error": …}, so that the command can tell it as its own.
    """
    kind, setting, details = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    try:
        found: dict[str, Any] = {"found": _measurements()[kind](Wanted(**setting), **details)}
    except PmdError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")


def _measurements() -> dict[str, Callable[..., Any]]:
    from pmd.benchmarks.loops.curves import measure_curve
    from pmd.benchmarks.loops.making import measure_making
    from pmd.benchmarks.loops.speed import measure_case, measure_memory

    return {"case": measure_case, "memory": measure_memory, "curve": measure_curve, "making": measure_making}
