"""The process in which cases are made: `python -m tests.trust.case_child MODULE:FUNCTION SEED FOLDER BYTES`.

Reads a number a line, makes that case, and answers with one JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from tests.trust.fuzz_engine import Broken

Case: TypeAlias = Callable[[int, random.Random], str]


def main() -> None:
    """Answer until stdin ends."""
    factory, seed, folder, limit = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    module, _, name = factory.partition(":")
    case: Case = getattr(importlib.import_module(f"tests.trust.{module}"), name)(folder)
    _tell(out, {"ready": True})
    for line in sys.stdin:
        _tell(out, _made(case, int(line), random.Random(f"{seed} {int(line)}")))


def _made(case: Case, number: int, rng: random.Random) -> dict[str, Any]:
    try:
        found: dict[str, Any] = {"outcome": case(number, rng)}
    except Broken as broken:
        found = {"failed": str(broken), "kind": str(broken)[:50]}
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        found = {"failed": f"{getattr(error, 'case', '')} {str(error)[:200]}", "kind": kind}
    return found | {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}


def _tell(out: Any, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
