"""Cases made one after the other in a child, which may die or hang: that case failed, and the rest go on."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.trust.attack import Ground, Tally

ROOT = Path(__file__).resolve().parents[2]
SERVING_BYTES, TRAINING_BYTES = 3 << 30, 6 << 30
"""Address space that a child may use: its libraries take one gigabyte, with torch two."""
CASE_SECONDS, START_SECONDS = 90.0, 180.0
SHOWN_OF_A_KIND = 3


def run_cases(
    factory: str, ground: Ground, tally: Tally, *, memory: int = SERVING_BYTES, numbers: range | None = None
) -> None:
    """Make `ground.count` cases (or those of `numbers`) into `tally`.

    factory: "module:function" below tests.trust; given an empty folder, the function gives another that makes the
    case of a number and a generator, and says how it ended. memory: bytes of address space.
    """
    numbers = range(ground.count) if numbers is None else numbers
    place, runs = 0, 0
    while place < len(numbers):
        child = _Child(factory, ground, runs, memory)
        runs += 1
        place = child.make(numbers, place, tally)
    tally.figures.setdefault("peak_rss_mib", 0)


class _Child:
    def __init__(self, factory: str, ground: Ground, run: int, memory: int) -> None:
        folder = ground.folder / f"{factory.replace(':', '-')}-{run}"
        folder.mkdir()
        command = [
            sys.executable,
            "-m",
            "tests.trust.case_child",
            factory,
            str(ground.seed),
            str(folder),
            str(memory),
        ]
        self._errors = open(folder.with_suffix(".stderr"), "w+b")
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._factory = factory

    def make(self, numbers: range, place: int, tally: Tally) -> int:
        """Make cases until the last, or until the child is gone; the place of the first that is left."""
        try:
            answer = self._ask(None, START_SECONDS)
            if "ready" not in answer:
                raise RuntimeError(f"{self._factory} does not start: {self._said(answer)}")
            while place < len(numbers):
                number = numbers[place]
                place += 1
                answer = self._ask(number, CASE_SECONDS)
                if "lost" in answer:
                    _failed(tally, f"{answer['lost']}", f"case {number} of {self._factory}: {self._said(answer)}")
                    return place
                _add(tally, number, answer)
            return place
        finally:
            self._process.kill()
            self._process.communicate()
            self._errors.close()

    def _ask(self, number: int | None, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            if number is not None:
                self._process.stdin.write(b"%d\n" % number)
                self._process.stdin.flush()
        except BrokenPipeError:
            return {"lost": "a death of the process"}
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return {"lost": f"a hang of {seconds:.0f} s"}
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"lost": "a death of the process"}

    def _said(self, answer: dict[str, Any]) -> str:
        self._errors.seek(0)
        last = " ".join(self._errors.read().decode(errors="replace").split())[-200:]
        return f"{answer.get('lost', answer)}, exit code {self._process.poll()}; {last}"


def _add(tally: Tally, number: int, answer: dict[str, Any]) -> None:
    if "outcome" in answer:
        tally.saw(answer["outcome"])
    else:
        _failed(tally, answer["kind"], f"case {number}: {answer['failed']}")
    tally.figures["peak_rss_mib"] = max(int(tally.figures.get("peak_rss_mib", 0)), answer["peak_rss_mib"])


def _failed(tally: Tally, kind: str, why: str) -> None:
    """All are counted, a few of a kind are shown."""
    if sum(kind in shown for shown in tally.failures) < SHOWN_OF_A_KIND:
        tally.failed(f"{kind}: {why}")
    else:
        tally.failed_cases += 1
