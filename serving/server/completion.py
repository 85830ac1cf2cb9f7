"""Entities by the beginning of their id or name, or by any part of it: what a person types into a field."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, islice

ROW, COLUMN = "\n", "\t"


class Completion:
    """All ids and names as one folded text, which is searched at the speed of memory."""

    def __init__(self, ids: Sequence[str], names: Sequence[str]) -> None:
        """ids, names: (E,), in the order of the entities."""
        self.ids, self.names = ids, names
        rows = [_folded(key) + COLUMN + _folded(name) for key, name in zip(ids, names, strict=True)]
        self._text = ROW + ROW.join(rows) + ROW
        self._starts = array("q", [1])  # (E + 1,): where each row starts, and where a next one would
        for row in rows:
            self._starts.append(self._starts[-1] + len(row) + 1)

    def find(self, query: str, limit: int) -> list[tuple[str, str]]:
        """At most `limit` (id, name): those with `query` as id or name, then that begin with it, then that hold it.

        Case and the kind of white space do not matter; an empty query gives the first entities.
        """
        wanted = _folded(query)
        whole, beginning = (ROW + wanted + COLUMN, COLUMN + wanted + ROW), (ROW + wanted, COLUMN + wanted)
        parts = [*whole, *beginning, wanted] if wanted else [ROW]
        rows = chain.from_iterable(self._rows_with(part) for part in parts)
        first = islice(_distinct(rows), limit)
        return [(self.ids[index], self.names[index]) for index in first]

    def _rows_with(self, part: str) -> Iterator[int]:
        """Rising indices of the rows that hold `part`, each once; ROW stands for the beginning of a row."""
        place = self._text.find(part)
        while place >= 0:
            index = bisect_right(self._starts, place + part.startswith(ROW)) - 1
            if index == len(self.ids):  # the last line break
                return
            yield index
            place = self._text.find(part, self._starts[index + 1] - 1)


def _distinct(indices: Iterator[int]) -> Iterator[int]:
    seen: set[int] = set()
    for index in indices:
        if index not in seen:
            seen.add(index)
            yield index


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
