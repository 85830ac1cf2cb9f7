"""Entities by the beginning of their id or name, or by any part of it: what a person types into a field."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from heapq import merge
from itertools import chain, islice
from typing import TypeAlias

from pmd.serving.rows import column
from pmd.serving.snapshot import Snapshot

ROW, COLUMN = "\n", "\t"
Row: TypeAlias = tuple[int, str, str]
"""Index, id and name of an entity."""


class Completion:
    """All ids and names as one folded text, which is searched at the speed of memory."""

    def __init__(self, ids: Sequence[str], names: Sequence[str], indices: Sequence[int] | None = None) -> None:
        """ids, names: (E,), in the order of the entities. indices: (E,), rising; 0 to E - 1 by default."""
        self._rows = list(zip(ids, names, strict=True))
        self._indices = range(len(ids)) if indices is None else indices
        rows = [_folded(key) + COLUMN + _folded(name) for key, name in self._rows]
        self._text = ROW + ROW.join(rows) + ROW
        self._starts = array("q", [1])  # (E + 1,): where each row starts, and where a next one would
        for row in rows:
            self._starts.append(self._starts[-1] + len(row) + 1)

    def find(self, query: str, limit: int) -> list[tuple[str, str]]:
        """At most `limit` (id, name): those with `query` as id or name, then that begin with it, then that hold it.

        Case and the kind of white space do not matter; an empty query gives the first entities.
        """
        return _first(limit, (self.rows_with(part) for part in parts_of(query)))

    def rows_with(self, part: str) -> Iterator[Row]:
        """The rows that hold `part`, in the order of their indices; ROW stands for the beginning of a row."""
        place = self._text.find(part)
        while place >= 0:
            at = bisect_right(self._starts, place + part.startswith(ROW)) - 1
            if at == len(self._rows):  # the last line break
                return
            yield self._indices[at], *self._rows[at]
            place = self._text.find(part, self._starts[at + 1] - 1)


class LiveCompletion:
    """The completions of a graph that changes: those of its tables, and the changed rows in a text of their own."""

    def __init__(self, state: Snapshot, before: LiveCompletion | None = None) -> None:
        """before: of an earlier snapshot, whose text of the tables is used again if they are the same."""
        self.state, rows = state, state.tables.entities
        kept = before is not None and before.state.tables is state.tables
        self._base: Completion = before._base if before and kept else Completion(column(rows, 0), column(rows, 1))
        gone, changed = set(state.fresh.gone.tolist()), state.fresh.slots.tolist()
        self._hidden = gone.union(changed)
        shown = [index for index in changed if index not in gone]
        over = [state.rows[index] for index in shown]
        self._over = Completion(column(over, 0), column(over, 1), shown)

    def find(self, query: str, limit: int) -> list[tuple[str, str]]:
        """As `Completion.find`, of the entities that are there."""
        return _first(limit, (self._rows_with(part) for part in parts_of(query)))

    def _rows_with(self, part: str) -> Iterator[Row]:
        return merge(_without(self._base.rows_with(part), self._hidden), self._over.rows_with(part))


def parts_of(query: str) -> list[str]:
    """What to look for, the best first: the whole of an id or name, its beginning, any part of it."""
    wanted = _folded(query)
    whole, beginning = (ROW + wanted + COLUMN, COLUMN + wanted + ROW), (ROW + wanted, COLUMN + wanted)
    return [*whole, *beginning, wanted] if wanted else [ROW]


def _first(limit: int, found: Iterator[Iterator[Row]]) -> list[tuple[str, str]]:
    return [(key, name) for _, key, name in islice(_distinct(chain.from_iterable(found)), limit)]


def _distinct(rows: Iterator[Row]) -> Iterator[Row]:
    seen: set[int] = set()
    for row in rows:
        if row[0] not in seen:
            seen.add(row[0])
            yield row


def _without(rows: Iterator[Row], hidden: Collection[int]) -> Iterator[Row]:
    return (row for row in rows if row[0] not in hidden)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
