"""Three-column files as triples of numbers: in bulk through pyarrow, or line by line.

The bulk pass is quick and only says whether all is well. The line-by-line pass says which line is not, and does
all the work where files are small or pyarrow is not installed. Both give the same arrays.
"""

from __future__ import annotations

import importlib.util
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmd.datasets.lines import lines
from pmd.errors import DatasetError
from pmd.serving.known import IntArray

SHOWN = 80  # characters of an id in a message
BULK_BYTES = 4 << 20  # below this, importing pyarrow takes longer than reading


@dataclass(frozen=True)
class Vocabulary:
    """Ids that triples may name, and where they are listed; None where any id is welcome."""

    entities: Sequence[str] | None = None
    relations: Sequence[str] | None = None
    entity_file: str = "entities.tsv"
    relation_file: str = "relations.tsv"


@dataclass(frozen=True)
class Indexed:
    """Triples int64 (N, 3) by split, and the ids their numbers stand for; ids that were collected are sorted."""

    entities: list[str]
    relations: list[str]
    splits: dict[str, IntArray]
    skipped: int = 0


def read_triples(files: Mapping[str, Path], vocabulary: Vocabulary, *, skip_unknown: bool = False) -> Indexed:
    """Read head, relation, tail files by split; `skip_unknown` leaves out triples that name unknown ids.

    Raises DatasetError naming file and line.
    """
    large = sum(path.stat().st_size for path in files.values()) >= BULK_BYTES
    if large and importlib.util.find_spec("pyarrow"):
        from pmd.datasets.bulk import read_files

        found = read_files(files, vocabulary)
        if found is not None and (skip_unknown or not found.skipped):
            return found
    return read_by_line(files, vocabulary, skip_unknown=skip_unknown)


def read_by_line(files: Mapping[str, Path], vocabulary: Vocabulary, *, skip_unknown: bool = False) -> Indexed:
    """The exact pass. Raises DatasetError naming file and line."""
    entities, relations = _numbering(vocabulary.entities), _numbering(vocabulary.relations)
    splits: dict[str, IntArray] = {}
    skipped = 0
    for split, path in files.items():
        flat = array("q")
        for number, (head, relation, tail) in three_fields(path):
            try:
                flat.extend((entities[head], relations[relation], entities[tail]))
            except KeyError as error:
                if not skip_unknown:
                    where = f"{path}:{number}"
                    raise unknown_id(where, (head, relation, tail), entities, vocabulary) from error
                skipped += 1
        splits[split] = np.array(flat, dtype=np.int64).reshape(-1, 3)
    return _in_order(entities, relations, splits, skipped)


def three_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and three fields of every line. Raises DatasetError at a line with more or fewer."""
    for number, line in lines(path):
        for part in line.split("\r"):  # old line ends, as pyarrow reads them
            fields = part.split("\t")
            if len(fields) == 3:
                yield number, fields
            elif part:
                raise DatasetError(
                    f"{path}:{number}: {len(fields)} column{'s' * (len(fields) != 1)}, expected head, relation "
                    f"and tail with a tab between them; mend or drop the line"
                )


def unknown_id(
    where: str, triple: Sequence[str], entities: Mapping[str, int], vocabulary: Vocabulary
) -> DatasetError:
    """The error for a triple that names an id it may not name."""
    head, relation, tail = triple
    if not all(name.strip() for name in triple):
        return DatasetError(f"{where}: an id is empty; a triple needs a head, a relation and a tail")
    for value in (head, tail):
        if vocabulary.entities is not None and value not in entities:
            return DatasetError(
                f"{where}: {value[:SHOWN]!r} is not in {vocabulary.entity_file}; add it there or drop the triple"
            )
    return DatasetError(
        f"{where}: {relation[:SHOWN]!r} is not in {vocabulary.relation_file}; add it there or drop the triple"
    )


class _Growing(dict[str, int]):
    """Gives every new id the next number; a blank id is refused with KeyError."""

    def __missing__(self, key: str) -> int:
        if not key.strip():
            raise KeyError(key)
        self[key] = number = len(self)
        return number


def _numbering(known: Sequence[str] | None) -> dict[str, int]:
    return _Growing() if known is None else {key: number for number, key in enumerate(known)}


def _in_order(
    entities: dict[str, int], relations: dict[str, int], splits: dict[str, IntArray], skipped: int
) -> Indexed:
    """Collected ids sorted, so that their order does not depend on the order of the lines."""
    entity_ids, entity_place = _ranked(entities)
    relation_ids, relation_place = _ranked(relations)
    placed = {
        split: np.stack([entity_place[rows[:, 0]], relation_place[rows[:, 1]], entity_place[rows[:, 2]]], axis=1)
        for split, rows in splits.items()
    }
    return Indexed(entity_ids, relation_ids, placed, skipped)


def _ranked(numbering: dict[str, int]) -> tuple[list[str], IntArray]:
    """Ids in their final order, and the final place of each number."""
    ids = sorted(numbering) if isinstance(numbering, _Growing) else list(numbering)
    place = np.empty(len(ids), dtype=np.int64)
    place[[numbering[key] for key in ids]] = np.arange(len(ids))
    return ids, place
