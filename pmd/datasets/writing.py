"""What the writers share: triples as ids, and files of tab-separated lines, plain or compressed."""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph

CHUNK = 100_000  # triples turned into ids at a time
CONTROLS = {"\t": "a tab", "\n": "a line break", "\r": "a carriage return"}
BOM = "\ufeff"


def id_rows(graph: KnowledgeGraph, split: str) -> Iterator[tuple[str, str, str]]:
    """Head id, relation id and tail id of every triple of a split, in order."""
    triples = graph.split(split)
    for start in range(0, len(triples), CHUNK):
        for head, relation, tail in triples[start : start + CHUNK].tolist():
            yield graph.entity_ids[head], graph.relation_ids[relation], graph.entity_ids[tail]


def refuse_control_characters(graph: KnowledgeGraph, layout: str) -> None:
    """Raise DatasetError, naming the entity or relation, if an id or text has a tab or line break."""
    for what, ids, *texts in (
        ("entity", graph.entity_ids, graph.entity_ids, graph.names, graph.descriptions),
        ("relation", graph.relation_ids, graph.relation_ids, graph.relation_texts),
    ):
        for column in texts:
            for key, text in zip(ids, column, strict=True):
                found = [name for control, name in CONTROLS.items() if control in text]
                if found:
                    raise DatasetError(
                        f"{what} {key!r} has {found[0]} in its id or text, which the {layout} layout cannot hold; "
                        f"write spaces for them (--flatten) or choose csv, parquet, simkgc or nt"
                    )


@contextmanager
def text_file(path: Path) -> Iterator[IO[str]]:
    """A new UTF-8 file with LF line ends, compressed as its suffix says; the same content gives the same bytes."""
    with open(path, "xb") as raw:
        packed = _packed(raw, path.suffix)
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:
            yield file


def write_lines(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """A file with a line of tab-separated fields per row."""
    with text_file(path) as file:
        for number, row in enumerate(rows):
            line = "\t".join(row)
            # A reader drops one BOM from the start of a file; content that begins with one gets another.
            file.write(f"{BOM if number == 0 and line.startswith(BOM) else ''}{line}\n")


def _packed(raw: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
    return cast(IO[bytes], lzma.LZMAFile(raw, "wb")) if suffix == ".xz" else raw
