"""What a child process is asked to measure. It crosses the border as JSON, so it is plain values and no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

GRAPH, RANDOM, NAIVE = "ours, graph order", "ours, random order", "padded and undeduplicated"
LOOPS = (GRAPH, RANDOM, NAIVE)
TEACHER, MASKED, UNMASKED = "teacher", "taught, masked", "taught, unmasked"
CASES = (TEACHER, MASKED, UNMASKED)


@dataclass(frozen=True)
class Wanted:
    """The setting of all measurements of a run."""

    recipe: str
    """A shipped recipe's name or a YAML file; loops differ only in what their name says."""
    data: str | None
    """The dataset; None for the recipe's."""
    encoder: str | None
    """The encoder; None for the recipe's."""
    batch_size: int
    batch_of: str
    """What ours counts: `queries`, as the recipe does, or `triples`, about as many a step as the padded loop."""
    teacher_layers: int
    student_layers: int
    mask_rate: float
    """Of the case with masks."""
    threads: int
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
