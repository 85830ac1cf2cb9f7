"""Who is meant: ids, and names where only one has it, to indices; and who is nearest to what nobody is called."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pmd.serving.asked import shown
from pmd.serving.errors import QueryError, ServingError
from pmd.serving.rows import column

NEAREST = 3
POOL = 1000  # names compared in full when none is close: 20 ms, where 80,000 would take seconds
KEY_CHARACTERS = 100  # difflib is slow on long texts, and a typing mistake shows early
NOBODY = -1


@dataclass(frozen=True)
class Lookup:
    """Rows whose first two columns are an id and a name, found by either.

    A Lookup is never changed. `put` and `drop` make a new one that shares the large dictionaries of the first and
    lays a few new entries over them.
    """

    rows: Sequence[tuple[str, ...]]
    kind: str
    """What the rows are, for messages."""
    unknown: type[ServingError]
    """The error to raise."""
    ids: Mapping[str, int]
    names: Mapping[str, int]
    """The first that has a name."""
    shared: Mapping[str, Sequence[int]]
    """All that have it, for names of several: most have one, and a list each would take more than the texts."""
    new_ids: Mapping[str, int] = field(default_factory=dict)
    """Over `ids`; NOBODY where an id is no longer there."""
    new_names: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Over `names` and `shared`."""

    @classmethod
    def of(cls, rows: Sequence[tuple[str, ...]], kind: str, unknown: type[ServingError]) -> Lookup:
        """Build the dictionaries; ids must be distinct."""
        ids, names = column(rows, 0), column(rows, 1)
        first = dict(zip(reversed(names), range(len(names) - 1, -1, -1), strict=True))
        shared: dict[str, list[int]] = {}
        if len(first) < len(names):
            for index, name in enumerate(names):
                if first[name] != index:
                    shared.setdefault(name, [first[name]]).append(index)
        return cls(rows, kind, unknown, dict(zip(ids, range(len(ids)), strict=True)), first, shared)

    def put(self, rows: Sequence[tuple[str, ...]], index: int) -> Lookup:
        """The lookup of `rows`, which differ from the present ones in that `index` is new or has another name."""
        dropped = self.drop(index) if index < len(self.rows) else self
        key, name = rows[index][:2]
        bearers = tuple(sorted((*dropped._named(name), index)))
        return replace(
            dropped,
            rows=rows,
            new_ids={**dropped.new_ids, key: index},
            new_names={**dropped.new_names, name: bearers},
        )

    def drop(self, index: int) -> Lookup:
        """The lookup without the row at `index`."""
        key, name = self.rows[index][:2]
        bearers = tuple(other for other in self._named(name) if other != index)
        return replace(self, new_ids={**self.new_ids, key: NOBODY}, new_names={**self.new_names, name: bearers})

    def of_id(self, key: str) -> int | None:
        """The index of an id, None without one."""
        index = self.new_ids.get(key)
        if index is None:
            return self.ids.get(key)
        return None if index == NOBODY else index

    def match(self, key: str) -> int | None:
        """The index of an id, or else of a name that only one has; None without one."""
        index = self.of_id(key)
        if index is not None:
            return index
        named = self._named(key)
        return named[0] if len(named) == 1 else None

    def checked(self, key: str) -> str:
        """`key` itself. Raises QueryError if it is no text."""
        if not isinstance(key, str):
            raise QueryError(f"{self._plural} are given by id or name, got {type(key).__name__} {shown(key)}")
        return key

    def find(self, key: str) -> int:
        """As `match`; raises the unknown error, which names the bearers of the name or the nearest ids."""
        index = self.match(self.checked(key))
        if index is not None:
            return index
        shown = key if len(key) <= KEY_CHARACTERS else key[:KEY_CHARACTERS] + "…"
        if named := self._named(key):
            bearers = [self.rows[other][0] for other in named]
            listed = ", ".join(bearers[:10]) + (f" and {len(bearers) - 10} more" if len(bearers) > 10 else "")
            raise self.unknown(f"{len(bearers)} {self._plural} are named {shown!r}; give an id: {listed}")
        raise self.unknown(f"no {self.kind} has the id or name {shown!r}; nearest: {', '.join(self._nearest(key))}")

    def _named(self, name: str) -> Sequence[int]:
        named = self.new_names.get(name)
        if named is None:
            named = self.shared.get(name)
        if named is None:
            named = (self.names[name],) if name in self.names else ()
        return named

    @property
    def _plural(self) -> str:
        return "entities" if self.kind == "entity" else f"{self.kind}s"

    def _present(self) -> Iterator[tuple[str, ...]]:
        return (row for index, row in enumerate(self.rows) if self.of_id(row[0]) == index)

    def _nearest(self, key: str) -> list[str]:
        key = key[:KEY_CHARACTERS]
        # Ids and names both: a name without its underscores is the commonest near miss.
        rows = list(self._present())
        owners = {row[1]: row[0] for row in reversed(rows)} | {row[0]: row[0] for row in rows}
        close = difflib.get_close_matches(key, owners, n=2 * NEAREST)
        if len({owners[name] for name in close}) < NEAREST:
            some = sorted(owners, key=lambda name: abs(len(name) - len(key)))[:POOL]
            close += difflib.get_close_matches(key, some, n=2 * NEAREST, cutoff=0.0)
        return list(dict.fromkeys(owners[name] for name in close))[:NEAREST]
