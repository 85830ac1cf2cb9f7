"""One CSV or Parquet file as columns of text that have a known role, through pyarrow (extra `data`)."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from pmd.datasets.lines import MOST_UNPACKED, UNPACKED_FREELY_BYTES, read_text, suffix_of
from pmd.errors import DatasetError

MOST_COLUMNS = 1000  # that are read as text; pyarrow would guess the kind of any more
MOST_ROWS_PER_BYTE = 20  # of a Parquet file; a row of three texts that differ takes bytes
BLOCK_LIMIT = 2**31 - 1  # pyarrow counts a block's bytes in 32 bits
Headings = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Frame:
    """String columns named by role, and where each row came from."""

    path: Path
    table: pa.Table
    records_before: int
    """Records of the file before the first row: 1 where it has headings."""

    def place(self, row: int) -> str:
        """Where a row stands: "file:line" of a CSV file, "file: row N" of a Parquet file."""
        if suffix_of(self.path) == ".parquet":
            return f"{self.path}: row {row + 1}"
        wanted = row + self.records_before
        starts = (line for number, (line, _) in enumerate(_records(self.path)) if number == wanted)
        return f"{self.path}:{next(starts, '?')}"

    def texts(self, role: str) -> list[str]:
        """A column as text, "" where it is null or the file has no such column."""
        if role not in self.table.column_names:
            return [""] * len(self.table)
        return [text or "" for text in self.table[role].to_pylist()]


def read_frame(path: Path, headings: Headings, needed: int) -> Frame:
    """The columns that have one of the `headings`, or else the first ones; the first `needed` roles must be there.

    Raises DatasetError naming file and line, also where one of those is empty.
    """
    table, names = _parquet(path) if suffix_of(path) == ".parquet" else _csv(path)
    roles = _by_heading(names, headings)
    headed = all(role in roles for role in list(headings)[:needed])
    if not headed:
        roles = _by_order(path, names, headings, needed)
    elif suffix_of(path) != ".parquet":
        table = table.slice(1)
    try:
        columns = {role: pc.cast(table.column(place), pa.string()) for role, place in roles.items()}
        pa.table(columns).validate(full=True)  # Parquet says of bytes that they are UTF-8; nobody looked
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: a column cannot be read as text ({_first_line(error)})") from error
    frame = Frame(path, pa.table(columns), int(headed))
    for role in list(headings)[:needed]:
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(columns[role]), ""), True).to_numpy()
        if blank.any():
            raise DatasetError(f"{frame.place(int(blank.argmax()))}: {role} is empty; every row needs one")
    return frame


def _by_heading(names: Sequence[str], headings: Headings) -> dict[str, int]:
    """Column numbers by role, for the roles that have a heading."""
    places = {name.strip().lower(): place for place, name in reversed(list(enumerate(names)))}
    found = {role: [places[name] for name in others if name in places] for role, others in headings.items()}
    return {role: columns[0] for role, columns in found.items() if columns}


def _by_order(path: Path, names: Sequence[str], headings: Headings, needed: int) -> dict[str, int]:
    if not needed <= len(names) <= len(headings):
        shown = " ".join(", ".join(names[:6]).split())
        raise DatasetError(
            f"{path}:1: {len(names)} columns ({shown[:80]}), expected {needed} or headings "
            f"({', '.join(headings)}); name the columns"
        )
    return {role: place for place, role in enumerate(list(headings)[: len(names)])}


def _parquet(path: Path) -> tuple[pa.Table, list[str]]:
    try:
        with open(path, "rb") as file:  # pyarrow itself opens no path that is not UTF-8
            names = _checked_size(path, pq.ParquetFile(file).metadata)
            table = pq.read_table(file, read_dictionary=names)  # a long text that repeats is held once
        return _spread(path, table), table.column_names
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column's name is not UTF-8
        raise DatasetError(f"{path}: not a Parquet file, or cut short ({_first_line(error)})") from error


def _checked_size(path: Path, metadata: pq.FileMetaData) -> list[str]:
    """The names of its columns of text. Raises DatasetError for more rows than a file of its size can hold."""
    most = MOST_ROWS_PER_BYTE * path.stat().st_size
    if metadata.num_rows > most:
        raise DatasetError(f"{path}: it claims {metadata.num_rows:,} rows, expected at most {most:,} in its size")
    columns = (metadata.schema.column(number) for number in range(metadata.num_columns))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _spread(path: Path, table: pa.Table) -> pa.Table:
    """The table with each text in its place. Raises DatasetError where that takes far more than the file does."""
    most = max(UNPACKED_FREELY_BYTES, MOST_UNPACKED * path.stat().st_size)
    for place, column in enumerate(table.columns):
        if not pa.types.is_dictionary(column.type):
            continue
        sizes = [pc.sum(pc.take(pc.binary_length(part.dictionary), part.indices)).as_py() for part in column.chunks]
        most -= sum(size or 0 for size in sizes)
        if most < 0:
            raise DatasetError(f"{path}: its texts are more than {MOST_UNPACKED} times its size; write it as CSV")
        table = table.set_column(place, table.field(place).name, pc.cast(column, column.type.value_type))
    return table


def _csv(path: Path) -> tuple[pa.Table, list[str]]:
    """Every record as strings, and the fields of the first one."""
    data = read_text(path).encode()
    if not data.strip():
        raise DatasetError(f"{path}:1: the file is empty")
    columns = len(next(_records(path), (0, []))[1])
    if columns > MOST_COLUMNS:
        raise DatasetError(f"{path}:1: {columns:,} columns, expected at most {MOST_COLUMNS:,}")
    strings = {f"f{number}": pa.string() for number in range(MOST_COLUMNS)}
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            # One block: a record may be as long as it likes.
            read_options=arrow_csv.ReadOptions(
                autogenerate_column_names=True, block_size=min(len(data) + 1, BLOCK_LIMIT)
            ),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(column_types=strings),
        )
    except pa.ArrowInvalid as error:
        raise _ragged(path) or DatasetError(f"{path}: not CSV ({_first_line(error)})") from error
    return table, [str(column[0]) for column in table.columns]


def _ragged(path: Path) -> DatasetError | None:
    """The error for the first record with another number of columns than the first."""
    width = 0
    for line, record in _records(path):
        width = width or len(record)
        if len(record) != width:
            return DatasetError(
                f"{path}:{line}: {len(record)} columns, expected {width} as in the first line; quote a field that "
                f"has a comma in it"
            )
    return None


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line at which each record starts, and its fields; slow, for messages alone."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""))
        before = 0
        for record in reader:
            if record:
                yield before + 1, record
            before = reader.line_num
    finally:
        csv.field_size_limit(limit)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
