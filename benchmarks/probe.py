"""A piece of Python in a process of its own: its memory is its own, and this package imports nothing for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from pmd.benchmarks.errors import BenchError, MeasureError
from pmd.serving.errors import PmdError


def run_python(code: str, *arguments: str, timeout: float) -> str:
    """What the code prints. Raises MeasureError if it fails or takes longer than `timeout` seconds."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasureError(
            f"a measurement took more than {timeout:.0f} s; give --timeout or a smaller graph"
        ) from error
    if child.returncode:
        raise MeasureError(f"a measurement failed: {child.stderr.strip().splitlines()[-1]}")
    return child.stdout


def tell(measure: Callable[[], Any]) -> None:
    """In the child: print what a measurement found, one line of JSON.

    A user's mistake is an answer too, {"error": …}, so that the command can tell it as its own.
    """
    try:
        found: dict[str, Any] = {"found": measure()}
    except PmdError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")


def told(printed: str) -> Any:
    """In the parent: what a child found, of what it printed. Raises BenchError for a mistake in what was asked."""
    answer = json.loads(printed.splitlines()[-1])
    if "error" in answer:
        raise BenchError(answer["error"])
    return answer["found"]
