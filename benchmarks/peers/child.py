"""One child process of a comparison: `python -m pmd.benchmarks.peers.child REQUEST`.

REQUEST is a JSON object with `task`: `material` writes what all sides read and answers in the last line of stdout;
`side` is one side, which then takes orders from stdin. Threads are pinned by the parent's environment. A side's
libraries are imported only once it is known, and what they print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pmd.serving.errors import PmdError

Request: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Do what `argv[0]` asks, write the answer to stdout; 0 done, 1 failed."""
    request = json.loads(argv[0])
    answers = _own_channel()
    try:
        answer = TASKS[request["task"]](request, answers)
    except Exception as error:  # the process boundary: whatever went wrong is told in one line
        text = " ".join(str(error).split())
        answer = {"error": text if isinstance(error, PmdError) else f"{type(error).__name__}: {text}"}
    answers.write(json.dumps(answer, allow_nan=False) + "\n")
    answers.flush()
    return 1 if "error" in answer else 0


def _own_channel() -> Any:
    """A copy of stdout for answers alone; from here on, whatever else is printed, by C++ too, goes to stderr."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def material(request: Request, _: Any) -> Answer:
    """As `material.write_material`."""
    from pmd.benchmarks.peers.material import write_material

    return write_material(request)


def side(request: Request, answers: Any) -> Answer:
    """Make the side that `maker` (module:function) names, then obey until stdin ends.

    request: also `side`, its name; `material`, the folder; `bundle`, `query` (the tower's folder), `stage` (null
    where there are no torch weights) and `threads`.
    """
    from pmd.benchmarks.peers.material import Material
    from pmd.benchmarks.sides import obey

    module, _, function = request["maker"].partition(":")
    made = getattr(importlib.import_module(module), function)(request, Material.read(Path(request["material"])))
    obey(made, request["side"], sys.stdin, answers)
    return {"done": request["side"]}


TASKS: dict[str, Callable[[Request, Any], Answer]] = {"material": material, "side": side}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
