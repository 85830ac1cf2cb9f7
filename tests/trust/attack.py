"""What an attack is: a count of cases against one part of the toolkit, and a tally of how each ended."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN_FAILURES = 20
"""Failures kept with their words; all are counted."""


@dataclass
class Tally:
    """How the cases of an attack ended. A case is `saw` or `failed`, never both."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Cases by how they ended, in words a reader of docs/trust.md understands: "BundleError", "same answers"."""
    failed_cases: int = 0
    failures: list[str] = field(default_factory=list)
    """What broke a promise, one line each with the seed or the bytes to repeat it."""
    figures: dict[str, float | int | str] = field(default_factory=dict)
    """Measurements, units in their names."""

    def saw(self, outcome: str, count: int = 1) -> None:
        """Cases that ended as they should."""
        self.outcomes[outcome] += count

    def failed(self, why: str) -> None:
        """A case that broke a promise."""
        self.failed_cases += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append(" ".join(why.split())[:600])

    @property
    def cases(self) -> int:
        """All of them."""
        return sum(self.outcomes.values()) + self.failed_cases


@dataclass(frozen=True)
class Ground:
    """What an attack is given."""

    count: int
    """Cases to make (for a soak: seconds to last)."""
    seed: int
    folder: Path
    """Empty, on a disk, removed afterwards."""

    @property
    def random(self) -> random.Random:
        """A new generator, the same for the same seed."""
        return random.Random(self.seed)


@dataclass(frozen=True)
class Attack:
    """One attack. `run` makes `count` cases and tallies them; it runs in a process of its own."""

    name: str
    part: str
    """The part of the list in docs/trust.md: crashes, hostile files, fuzzing, soak, numbers, supply chain, …"""
    what: str
    """What is done to what, and what must hold; one sentence."""
    run: Callable[[Ground], Tally]
    quick: int
    """Cases of the ten-minute version."""
    full: int
    """Cases behind the figures of docs/trust.md."""
    limit_seconds: int = 600
    """Longer than this, for the quick count, is a hang; a larger count may take as many times more."""
    alone: bool = False
    """Whether it measures time, so that nothing may run beside it."""
    skip: Callable[[], str | None] = lambda: None
    """Why it cannot be made on this machine, or None."""

    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {"attack": self.name, "part": self.part, "what": self.what}
