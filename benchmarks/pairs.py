"""Bundles of one report tested by pairs: each against its float32 sibling, and against the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pmd.serving.analysis import paired_test
from pmd.serving.known import IntArray
from pmd.serving.ranking import Ranks

FLOAT = "fp32"
SIBLING = ("dataset", "method", "stage", "encoder", "seed")
TEACHER = ("dataset", "encoder", "seed")
"""What two bundles must have in common."""


class Ranked(NamedTuple):
    """Ranks of a split's triples, 2N, and the triples, int64 (N, 3)."""

    ranks: Ranks
    triples: IntArray


def write_ranks(path: Path, ranks: Ranks, triples: IntArray) -> None:
    """Keep a bundle's ranks for `paired`, in an .npz file."""
    np.savez(path, counts=ranks.counts, num_entities=ranks.num_entities, triples=triples)


def read_ranks(path: Path) -> Ranked | None:
    """What `write_ranks` kept; None where it came to nothing."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as kept:
        return Ranked(Ranks(kept["counts"], int(kept["num_entities"])), kept["triples"])


def paired(rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows with `against_fp32` and `against_teacher`, null where the report has no such bundle.

    files: of `write_ranks`, one for each row. The sibling is the same grade's bundle in fp32, the teacher the
    teacher's in fp32; neither is tested against itself, nor one that failed, nor on other triples.
    """
    ranked = [None if row["error"] else read_ranks(file) for row, file in zip(rows, files, strict=True)]

    def against(number: int, other: int | None) -> dict[str, Any] | None:
        if other is None:
            return None
        ours, theirs = ranked[number], ranked[other]
        if ours is None or theirs is None or not np.array_equal(ours.triples, theirs.triples):
            return None
        return {"bundle": rows[other]["bundle"], **paired_test(ours.ranks, theirs.ranks)}

    return [
        {
            **row,
            "against_fp32": against(number, _fp32(rows, number, SIBLING)),
            "against_teacher": against(number, _fp32(rows, number, TEACHER, stage="teacher")),
        }
        for number, row in enumerate(rows)
    ]


def _fp32(rows: Sequence[Mapping[str, Any]], number: int, common: Sequence[str], **wanted: str) -> int | None:
    """The first other fp32 bundle that has the same of `common` and what is wanted."""
    row, needed = rows[number], {"precision": FLOAT, **wanted}
    for place, other in enumerate(rows):
        if place == number or other["error"]:
            continue
        if any(other[key] != value for key, value in needed.items()):
            continue
        if all(other[key] == row[key] for key in common):
            return place
    return None
