"""The fuzzer: inputs made from seeds, a check of each, and a tally; guided by coverage where atheris is installed.

A `Surface` is checked in a process of its own by atheris (libFuzzer), with its own mutations and ours in turn, so
that a crash or a hang of native code is caught too. Without atheris the same inputs come from our mutations alone.
"""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.trust.attack import Ground, Tally
from tests.trust.fuzz_mutation import mutated

ROOT = Path(__file__).resolve().parents[2]
LONGEST_MESSAGE = 2000
"""Characters of an error's line; a name or a value that is shown is cut long before."""
SHOWN_OF_A_KIND = 3
LEAST_SECONDS, CASES_PER_SECOND = 300, 5
"""A surface that is slower than this hangs."""


class Broken(Exception):
    """A promise that an input broke, in words."""


@dataclass(frozen=True)
class Surface:
    """What is fuzzed with bytes."""

    seeds: tuple[bytes, ...]
    """Inputs that are well-formed, or nearly so."""
    check: Callable[[bytes], str]
    """How the input ended, in a word; raises Broken, and whatever the product should not raise."""
    mutate: Callable[[random.Random, bytes], bytes] | None = None
    """A mutation that knows the structure; None for bytes alone."""


def settled(run: Callable[[], str], *errors: type[BaseException]) -> str:
    """What `run` says, or the name of its error, if it is one of `errors` with one short line. Raises Broken."""
    try:
        return run()
    except errors as error:
        message = str(error)
        if not message or "\n" in message or "\r" in message or len(message) > LONGEST_MESSAGE:
            raise Broken(f"{type(error).__name__} says {len(message)} characters: {message[:200]!r}") from error
        return type(error).__name__


def tried(tally: Tally, run: Callable[[], str], repeat: Callable[[], str]) -> None:
    """Tally one case; `repeat` says what makes it again. Failures of one kind are all counted, a few are shown."""
    try:
        tally.saw(run())
    except Broken as broken:
        _failed(tally, str(broken)[:40], str(broken), repeat)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
        _failed(tally, kind, f"{kind}: {str(error)[:160]}", repeat)


def numbered(tally: Tally, run: Callable[[], str], ground: Ground, number: int) -> None:
    """As `tried`, for a case that its number and the seed make again."""
    tried(tally, run, lambda: f"case {number} of seed {ground.seed}")


def _failed(tally: Tally, kind: str, why: str, repeat: Callable[[], str]) -> None:
    if sum(shown.startswith(kind) for shown in tally.failures) < SHOWN_OF_A_KIND:
        tally.failed(f"{why}; {repeat()}")
    else:
        tally.failed_cases += 1


def shown(data: bytes, seeds: Sequence[bytes]) -> str:
    """The part of an input that differs from its nearest seed."""
    start = max((_common(data, seed) for seed in seeds), default=0)
    first = max(0, start - 40)
    return f"{len(data)} bytes, from {first}: {data[first : first + 160]!r}"


def _common(one: bytes, other: bytes) -> int:
    """How many bytes two inputs begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def plain(surface: Surface, count: int, rng: random.Random, tally: Tally) -> None:
    """`count` cases by our own mutations, the seeds themselves first."""
    for number in range(count):
        data = surface.seeds[number] if number < len(surface.seeds) else made(surface, rng)
        tried(tally, partial(surface.check, data), partial(shown, data, surface.seeds))


def made(surface: Surface, rng: random.Random, data: bytes | None = None) -> bytes:
    """A new input, from a seed or from `data`."""
    if data is None:
        data = rng.choice(surface.seeds)
    if surface.mutate is not None and rng.random() < 0.7:
        return surface.mutate(rng, data)
    return mutated(rng, data, surface.seeds)


def fuzz(factory: str, count: int, ground: Ground, tally: Tally) -> None:
    """`count` cases of a surface into `tally`. factory: "module:function" below tests.trust, given a folder."""
    folder = ground.folder / factory.replace(":", "-")
    folder.mkdir()
    command = [sys.executable, "-m", "tests.trust.fuzz_child", factory, str(count), str(ground.seed), str(folder)]
    limit = max(LEAST_SECONDS, count / CASES_PER_SECOND)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        tally.failed(f"{factory} still runs after {limit:.0f} s")
        return
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        found = [path for path in folder.glob("found-*") if path.is_file()]
        inputs = "".join(f" {path.name}: {path.read_bytes()[:300]!r}" for path in found)
        tally.failed(f"{factory} ended with {done.returncode}:{inputs} {' '.join(done.stderr.split())[-300:]}")
        return
    add(tally, json.loads(lines[-1]))


def add(tally: Tally, found: dict[str, Any]) -> None:
    """Add what a child tallied."""
    tally.figures["inputs_from"] = found["engine"]
    for outcome, cases in found["outcomes"].items():
        tally.saw(outcome, cases)
    for why in found["failures"]:
        tally.failed(why)
    tally.failed_cases += found["failed"] - len(found["failures"])


def has_atheris() -> bool:
    """Whether inputs can be guided by coverage."""
    return importlib.util.find_spec("atheris") is not None
