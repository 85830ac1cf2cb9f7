"""Rows of text: a tab-separated file read where it lies, and rows with a few changes laid over them."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pmd.serving.errors import BundleError

LINE, TAB = 10, 9
PIECE = 1 << 20  # bytes checked at a time


class EntityRow(NamedTuple):
    """One line of `entities.tsv`."""

    id: str
    name: str
    description: str


class RelationRow(NamedTuple):
    """One line of `relations.tsv`."""

    id: str
    text: str


Row = TypeVar("Row", EntityRow, RelationRow)


class TextRows(Sequence[Row], Generic[Row]):
    """The rows of a tab-separated UTF-8 file without header; one is made when it is asked for.

    A million rows as Python objects would take half a gigabyte and seconds to make.
    """

    def __init__(self, data: NDArray[np.uint8], kind: type[Row], what: str) -> None:
        """data: the file's bytes, which stay where they are. Raises BundleError for another encoding or width."""
        _check_text(data, what)
        self._data = data
        self._kind: type[Row] = kind
        self._columns = len(kind._fields)
        ends = np.flatnonzero(data == LINE)
        tabs = np.flatnonzero(data == TAB)
        _check_columns(ends, tabs, self._columns, what)
        self._kept: dict[int, list[str]] = {}
        # Where each column of each row ends: (rows, columns); it begins after what ends before it.
        self._ends = np.concatenate([tabs.reshape(-1, self._columns - 1), ends[:, None]], axis=1)

    def __len__(self) -> int:
        """Rows."""
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        """A row, or the rows of a slice."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._kind(*self._text(place, 0, self._columns - 1).split("\t"))

    def cell(self, index: int, number: int) -> str:
        """One column of one row; index from 0."""
        kept = self._kept.get(number)
        return self._text(index, number, number) if kept is None else kept[index]

    def column(self, number: int) -> list[str]:
        """One column of every row; kept, for `cell`."""
        if number not in self._kept:
            self._kept[number] = self._read_column(number)
        return self._kept[number]

    def _text(self, index: int, first: int, last: int) -> str:
        """A row from its first to its last wanted column, tabs included."""
        if first:
            start = int(self._ends[index, first - 1]) + 1
        else:
            start = int(self._ends[index - 1, -1]) + 1 if index else 0
        return self._data[start : int(self._ends[index, last])].tobytes().decode("utf-8")

    def _read_column(self, number: int) -> list[str]:
        before = self._ends[:, number - 1] if number else np.concatenate([[-1], self._ends[:-1, -1]])
        data = self._data.tobytes()
        starts, ends = (before[: len(self)] + 1).tolist(), self._ends[:, number].tolist()
        return [data[start:end].decode("utf-8") for start, end in zip(starts, ends, strict=True)]


class ChangedRows(Sequence[Row], Generic[Row]):
    """Rows with others in the place of some, and more after them; never changed itself."""

    def __init__(self, base: Sequence[Row], new: Mapping[int, Row], size: int) -> None:
        """new: rows by index, those from len(base) on among them. size: rows in all."""
        self._base: Sequence[Row] = base
        self._new: Mapping[int, Row] = new
        self._size = size

    @classmethod
    def over(cls, rows: Sequence[Row], index: int, row: Row) -> ChangedRows[Row]:
        """`rows` with another row at an index, or one more at the end."""
        base, new = (rows._base, rows._new) if isinstance(rows, ChangedRows) else (rows, {})
        return cls(base, {**new, index: row}, max(len(rows), index + 1))

    def __len__(self) -> int:
        """Rows."""
        return self._size

    def __getitem__(self, index: Any) -> Any:
        """A row, or the rows of a slice."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._size))]
        place = range(self._size)[index]
        row = self._new.get(place)
        return self._base[place] if row is None else row

    def cell(self, index: int, number: int) -> str:
        """One column of one row; index from 0."""
        row = self._new.get(index)
        return cell(self._base, index, number) if row is None else row[number]


class Column(Sequence[str]):
    """One column of rows, without a copy of it."""

    def __init__(self, rows: Sequence[tuple[str, ...]], number: int) -> None:
        self._rows, self._number = rows, number

    def __len__(self) -> int:
        """Rows."""
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The text in a row, or the texts in a slice of them."""
        if isinstance(index, slice):
            return [row[self._number] for row in self._rows[index]]
        return cell(self._rows, index, self._number)


def cell(rows: Sequence[tuple[str, ...]], index: int, number: int) -> str:
    """One column of one row (index from 0), without the others where that is faster."""
    if isinstance(rows, TextRows | ChangedRows):
        return rows.cell(index, number)
    return rows[index][number]


def column(rows: Sequence[tuple[str, ...]], number: int) -> list[str]:
    """One column of every row, as fast as the rows allow."""
    return rows.column(number) if isinstance(rows, TextRows) else [row[number] for row in rows]


def format_rows(rows: Sequence[tuple[str, ...]], what: str) -> bytes:
    """The bytes that `TextRows` reads back. Raises BundleError if a text holds a tab or a line break."""
    lines = []
    for row in rows:
        if any("\t" in text or "\n" in text for text in row):
            raise BundleError(f"{what}: the row of {row[0]!r} holds a tab or a line break; replace it with a space")
        lines.append("\t".join(row) + "\n")
    return "".join(lines).encode("utf-8")


def _check_text(data: NDArray[np.uint8], what: str) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for first in range(0, len(data), PIECE):
            decoder.decode(data[first : first + PIECE].tobytes(), final=first + PIECE >= len(data))
    except UnicodeDecodeError as error:
        raise BundleError(f"{what} is not UTF-8: {error.reason}") from error
    if len(data) and data[-1] != LINE:
        raise BundleError(f"{what} does not end in a line break; it was cut")


def _check_columns(ends: NDArray[np.int64], tabs: NDArray[np.int64], columns: int, what: str) -> None:
    """Raise BundleError unless every line has one tab less than there are columns."""
    found = np.diff(np.searchsorted(tabs, ends), prepend=0) + 1
    wrong = np.flatnonzero(found != columns)
    if len(wrong):
        raise BundleError(f"{what}, line {wrong[0] + 1}: expected {columns} columns, found {found[wrong[0]]}")
