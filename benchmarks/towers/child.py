"""What a child process runs: one measurement, asked for in JSON on the command line, answered in JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from pmd.benchmarks.probe import tell


def answer() -> None:
    """Run the measurement that the first argument names with the second, JSON. Prints one line of JSON."""
    from pmd.benchmarks.towers.encode import measure_encode
    from pmd.benchmarks.towers.speed import measure_speed

    measurements: dict[str, Callable[..., Any]] = {"speed": measure_speed, "encode": measure_encode}
    tell(lambda: measurements[sys.argv[1]](**json.loads(sys.argv[2])))
