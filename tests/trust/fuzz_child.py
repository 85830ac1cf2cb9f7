"""The process in which one surface is fuzzed: `python -m tests.trust.fuzz_child MODULE:FUNCTION COUNT SEED FOLDER`.

Its last line on stdout is the tally. libFuzzer ends a process itself when an input hangs or crashes it, and keeps
the input as FOLDER/found-….
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
from functools import partial
from pathlib import Path

from tests.trust.attack import Tally
from tests.trust.fuzz_engine import Surface, has_atheris, made, plain, shown, tried

INSTRUMENTED = ("pmd",)
SECONDS_OF_A_HANG, MOST_MEMORY_MB, MOST_BYTES = 20, 3000, 16384


def main() -> None:
    """Fuzz, and print the tally."""
    factory, count, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    tally = Tally()
    if has_atheris():
        _guided(factory, count, seed, folder, tally)
    else:
        plain(_surface(factory, folder), count, random.Random(seed), tally)
        _tell(tally)


def _surface(factory: str, folder: Path) -> Surface:
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(f"tests.trust.{module}"), name)(folder)


def _guided(factory: str, count: int, seed: int, folder: Path, tally: Tally) -> None:
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        surface = _surface(factory, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(surface.seeds):
        (corpus / f"{number}").write_bytes(data)

    def one(data: bytes) -> None:
        tried(tally, partial(surface.check, data), partial(shown, data, surface.seeds))
        if tally.cases >= count:
            _tell(tally)
            os._exit(0)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.4:
            return atheris.Mutate(data, most)
        return made(surface, rng, data if data and rng.random() < 0.7 else None)[:most]

    options = [
        f"-seed={seed + 1}",
        f"-timeout={SECONDS_OF_A_HANG}",
        f"-rss_limit_mb={MOST_MEMORY_MB}",
        f"-max_len={MOST_BYTES}",
        f"-artifact_prefix={folder}/found-",
        "-verbosity=0",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()


def _tell(tally: Tally) -> None:
    engine = "atheris, by coverage" if has_atheris() else "own mutations"
    found = {"engine": engine, "outcomes": tally.outcomes, "failed": tally.failed_cases, "failures": tally.failures}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
