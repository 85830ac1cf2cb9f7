"""A piece of Python in a process of its own: its memory is its own, and this package imports nothing for it."""

from __future__ import annotations

import subprocess
import sys

from pmd.benchmarks.errors import MeasureError


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
