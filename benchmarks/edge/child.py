"""One measurement of the edge runtime in a process of its own: `python -m pmd.benchmarks.edge.child REQUEST`.

REQUEST is a JSON object with `task` and what the task needs; the last line of stdout is the answer, a JSON object,
with `error` where the measurement failed. A task's module is imported only once the task is known: a process that
measures the runtime holds nothing that the runtime would not. Threads are pinned by the parent's environment.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pmd.serving.errors import PmdError

Request: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]

TASKS = {
    "material": ("material", "write_questions"),
    "rounds": ("turns", "rounds"),
    "side": ("sides", "take_turns"),
    "overhead": ("overhead", "measure_overhead"),
    "memory": ("flat", "measure_memory"),
    "table": ("million", "write_table"),
    "search": ("million", "measure_search"),
    "ann": ("near", "measure_ann"),
    "http": ("web", "measure_http"),
}
"""Task -> module of this package and its function."""


def main(argv: Sequence[str]) -> int:
    """Do what `argv[0]` asks, write the answer to stdout; 0 done, 1 failed."""
    request = json.loads(argv[0])
    try:
        module, name = TASKS[request["task"]]
        task: Callable[[Request], Answer] = getattr(importlib.import_module(f"pmd.benchmarks.edge.{module}"), name)
        answer = task(request)
    except Exception as error:  # the process boundary: whatever went wrong is told in one line
        text = " ".join(str(error).split())
        answer = {"error": text if isinstance(error, PmdError) else f"{type(error).__name__}: {text}"}
    sys.stdout.write(json.dumps(answer, allow_nan=False) + "\n")
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
