"""What a child process runs: one measurement, asked for in JSON on the command line, answered in JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from pmd.serving.errors import PmdError


def answer() -> None:
    """Run the measurement that the first argument names with the second, JSON. Prints one line of JSON.

    A user's mistake is an answer too, {"error": …}, so that the command can tell it as its own.
    """
    from pmd.benchmarks.towers.encode import measure_encode
    from pmd.benchmarks.towers.speed import measure_speed

    measurements: dict[str, Callable[..., Any]] = {"speed": measure_speed, "encode": measure_encode}
    try:
        found: dict[str, Any] = {"found": measurements[sys.argv[1]](**json.loads(sys.argv[2]))}
    except PmdError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")
