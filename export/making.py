"""What a bundle is to be: its precision, what is left out of it, and what it is called."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pmd.export.errors import TargetError

PRECISIONS = ("fp32", "fp16", "int8", "int8-static", "int4")
"""Every precision that pmd-export can write; each has a page in docs/decisions."""
VECTOR_TYPES = ("float32", "int8")
MEASURES = {
    "max_score_gap": "at_most",
    "p99_score_gap": "at_most",
    "max_cosine_gap": "at_most",
    "mrr_kept": "at_least",
}
"""What a gate can be about, and which way it is meant."""
FLOAT_VECTORS = ("fp32", "fp16")
"""Precisions that keep entity vectors in float32 unless told otherwise."""

NOTES = {
    "fp16": "onnxruntime computes fp16 graphs in float32 on a CPU: half the file, no faster than fp32",
}
"""What users of a precision should know before they choose it."""
NO_ORT = {
    "fp16": "onnxruntime turns half-precision weights into float32 as it writes an .ort file",
    "int4": "the .ort format has no 4-bit word embeddings",
}
"""Precisions that have no `.ort` file, and why."""


@dataclass(frozen=True)
class Making:
    """How one bundle of a grade is made."""

    precision: str
    trim_vocabulary: bool = False
    """Only the pieces that the graph's texts use, and single characters."""
    width: int | None = None
    """Numbers per vector, fewer than the encoder's; None keeps them all."""
    vectors: str | None = None
    """How entity vectors are stored; None leaves it to the precision."""
    entity_tower: bool = True
    """With the tower that reads new entities."""
    ort_format: bool = False
    """With a `.ort` file beside each graph, for reduced builds of onnxruntime."""

    def __post_init__(self) -> None:
        """Raise TargetError for what the `.ort` format cannot hold."""
        if self.ort_format and self.precision in NO_ORT:
            raise TargetError(f"--ort does not go with {self.precision}: {NO_ORT[self.precision]}; leave one out")

    @property
    def vector_type(self) -> str:
        """float32 or int8."""
        return self.vectors or ("float32" if self.precision in FLOAT_VECTORS else "int8")

    @property
    def suffix(self) -> str:
        """What a bundle's name ends in: its precision, and what else sets it apart in size."""
        parts = [self.precision]
        parts += ["trimmed"] if self.trim_vocabulary else []
        parts += [f"width-{self.width}"] if self.width else []
        parts += [f"{self.vectors}-vectors"] if self.vectors else []
        return "-".join(parts)

    def check(self, encoder_width: int) -> None:
        """Raise TargetError for a width that the encoder does not have."""
        if self.width is not None and not 1 <= self.width <= encoder_width:
            raise TargetError(
                f"--width {self.width} does not fit an encoder of width {encoder_width}; use 1 to {encoder_width}"
            )


def ways(
    precisions: Iterable[str],
    trimmed: Iterable[bool],
    widths: Iterable[int | None],
    rest: Making,
    *,
    lenient: bool = False,
) -> list[Making]:
    """Every combination, with all else as in `rest`. lenient: leave out what cannot be made.

    Raises TargetError for it otherwise.
    """
    found = []
    for trim, width, precision in itertools.product(trimmed, widths, precisions):
        try:
            found.append(replace(rest, precision=precision, trim_vocabulary=trim, width=width))
        except TargetError:  # no .ort file of this precision
            if not lenient:
                raise
    return found
