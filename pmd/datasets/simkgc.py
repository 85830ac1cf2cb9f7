"""SimKGC's folder of JSON: train.txt.json, valid.txt.json, test.txt.json, entities.json, relations.json.

Layout as written by preprocess.py of github.com/intfloat/SimKGC (commit 02e737e) and read by its doc.py: splits are
lists of {head_id, head, relation, tail_id, tail} where `relation` is the relation's *text*; entities.json is a list
of {entity_id, entity, entity_desc}; relations.json maps relation ids to texts. Texts in SimKGC's WN18RR keep
WordNet's sense tags ("land_reform_NN_1"), which its doc.py drops; so they are dropped here where all have one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pmd.datasets.lines import find, read_text
from pmd.datasets.material import Material, Table, TableBuilder
from pmd.datasets.triples import Vocabulary, unknown_id
from pmd.datasets.writing import id_rows, text_file
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph
from pmd.serving.known import SPLIT_NAMES, IntArray

LOOKED_FOR = "entities.json and train.txt.json"
ENTITIES, RELATIONS = "entities.json", "relations.json"
HALF = "has half a surrogate pair; mend the escape"
SENSE = re.compile(r"(\S+)_[A-Z]{2}_\d+")


def matches(path: Path) -> bool:
    """Whether a folder is laid out like this."""
    return find(path, "train.txt.json") is not None


def read(folder: Path, *, skip_unknown: bool = False) -> Material:
    """Read the folder. Raises DatasetError naming the file and line at fault."""
    listed = find(folder, ENTITIES)
    if listed is None:
        raise DatasetError(f"{folder} has no {ENTITIES}; SimKGC's layout needs it (its preprocess.py writes it)")
    entities = _entities(listed)
    relations = _relations(find(folder, RELATIONS))
    index = {key: number for number, key in enumerate(entities.ids)}
    splits: dict[str, IntArray] = {}
    skipped = 0
    for split in SPLIT_NAMES:
        path = find(folder, f"{split}.txt.json")
        if path is None:
            continue
        splits[split], left_out = _triples(path, index, relations, skip_unknown)
        skipped += left_out
        if split == "train" and not len(splits[split]):
            raise DatasetError(f"{path}:1: the file has no triples; there is nothing to train on")
    return Material(folder.resolve().name, entities, relations.table, splits, skipped)


def write(graph: KnowledgeGraph, folder: Path) -> None:
    """Write the graph into an existing folder, a record a line.

    Raises DatasetError if two relations have one text (the layout tells them apart by text alone), or all names
    look like WordNet's sense tags, which readers drop.
    """
    relations = dict(zip(graph.relation_ids, graph.relation_texts, strict=True))
    _by_text(relations, lambda key: f"relation {key!r}")
    if _all_tagged(graph.names):
        raise DatasetError("all names end in sense tags like _NN_1, which readers of this layout drop; rename them")
    entities = zip(graph.entity_ids, graph.names, graph.descriptions, strict=True)
    records = ({"entity_id": key, "entity": name, "entity_desc": text} for key, name, text in entities)
    _write_list(folder / ENTITIES, records)
    with text_file(folder / RELATIONS) as file:
        json.dump(relations, file, ensure_ascii=False, indent=4)
    name_of = dict(zip(graph.entity_ids, graph.names, strict=True))
    for split in SPLIT_NAMES:
        triples = (
            {"head_id": h, "head": name_of[h], "relation": relations[r], "tail_id": t, "tail": name_of[t]}
            for h, r, t in id_rows(graph, split)
        )
        _write_list(folder / f"{split}.txt.json", triples)


def _write_list(path: Path, records: Iterable[dict[str, str]]) -> None:
    with text_file(path) as file:
        before = "[\n"
        for record in records:
            file.write(before + json.dumps(record, ensure_ascii=False))
            before = ",\n"
        file.write("\n]\n" if before == ",\n" else "[]\n")


def _entities(path: Path) -> Table:
    records = _Records(path, ("entity_id", "entity", "entity_desc"), may_be_null=("entity", "entity_desc"))
    builder = TableBuilder(lambda number: f"{path}:{records.line(number)}")
    for number, row in records.rows():
        builder.add(number, *row)
    table = builder.table
    if not table.ids:
        raise DatasetError(f"{path}:1: the list is empty; it must hold every entity")
    if _all_tagged(table.names):
        names = [match[1].replace("_", " ") for match in map(SENSE.fullmatch, table.names) if match]
        return Table(table.ids, names, table.descriptions)
    return table


def _all_tagged(names: Sequence[str]) -> bool:
    return all(SENSE.fullmatch(name) for name in names)


class _RelationTexts:
    """Relations by their text; one that is not listed is added, its text being its id."""

    def __init__(self, texts: dict[str, str], place: Callable[[str], str]) -> None:
        self.table = Table(list(texts), list(texts.values()), [""] * len(texts))
        self._numbers = _by_text(texts, place)
        for number, key in enumerate(texts):
            self._numbers.setdefault(key, number)

    def number(self, text: str) -> int:
        """The relation's number."""
        if text not in self._numbers:
            self._numbers[text] = len(self.table.ids)
            self.table.ids.append(text)
            self.table.names.append(text)
            self.table.descriptions.append("")
        return self._numbers[text]


def _relations(path: Path | None) -> _RelationTexts:
    """The relations listed. Raises DatasetError if two have one text."""
    if path is None:
        return _RelationTexts({}, str)
    value = _parsed(path, read_text(path))
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise DatasetError(f"{path}:1: expected one object that maps relation ids to texts")
    texts = {key: text or key for key, text in value.items()}
    for key, text in texts.items():
        if not key.strip() or not text.strip():
            raise DatasetError(f"{path}: relation {key[:60]!r} has a blank id or text; name it")
        if not _is_whole(key + text):
            raise DatasetError(f"{path}: relation {key[:60]!r} {HALF}")
    return _RelationTexts(texts, lambda key: f"{path}: relation {key!r}")


def _by_text(texts: dict[str, str], place: Callable[[str], str]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    keys = list(texts)
    for number, (key, text) in enumerate(texts.items()):
        first = numbers.setdefault(text, number)
        if first != number:
            raise DatasetError(
                f"{place(key)} has the same text as {keys[first]!r}, {text!r}; this layout knows relations by "
                f"their text, so each needs its own"
            )
    return numbers


def _triples(
    path: Path, index: dict[str, int], relations: _RelationTexts, skip_unknown: bool
) -> tuple[IntArray, int]:
    """Triples of one split, and how many were left out for naming an unknown entity."""
    records = _Records(path, ("head_id", "relation", "tail_id"))
    rows: list[tuple[int, int, int]] = []
    skipped = 0
    for number, (head, relation, tail) in records.rows():
        if head in index and tail in index and relation.strip():
            rows.append((index[head], relations.number(relation), index[tail]))
        elif skip_unknown:
            skipped += 1
        else:
            where = f"{path}:{records.line(number)}"
            raise unknown_id(where, (head, relation, tail), index, Vocabulary(list(index), None, ENTITIES))
    return np.array(rows, dtype=np.int64).reshape(-1, 3), skipped


class _Records:
    """The records of a JSON list of objects, of which some string fields are wanted."""

    def __init__(self, path: Path, fields: tuple[str, ...], may_be_null: tuple[str, ...] = ()) -> None:
        self._path, self._fields, self._may_be_null = path, fields, may_be_null
        self._text = read_text(path)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Number (from 0) and wanted fields of each record. Raises DatasetError naming file and line."""
        value = _parsed(self._path, self._text)
        if not isinstance(value, list):
            raise DatasetError(f"{self._path}:1: expected a list of objects, found {type(value).__name__}")
        for number, record in enumerate(value):
            yield number, [self._field(number, record, name) for name in self._fields]

    def line(self, number: int) -> int:
        """The line on which a record ends or nearly so; found by reading the file again, record by record."""
        decoder, place = json.JSONDecoder(), self._text.index("[") + 1
        for _ in range(number + 1):
            while self._text[place] in " \t\r\n,":
                place += 1
            start = place
            _, place = decoder.raw_decode(self._text, place)
        return self._text.count("\n", 0, start) + 1

    def _field(self, number: int, record: Any, name: str) -> str:
        value = record.get(name) if isinstance(record, dict) else None
        if value is None and name in self._may_be_null:
            return ""
        if not isinstance(value, str):
            raise DatasetError(
                f"{self._path}:{self.line(number)}: record {number + 1} has no text {name!r}; "
                f"expected an object with {', '.join(self._fields)}"
            )
        if not _is_whole(value):
            raise DatasetError(f"{self._path}:{self.line(number)}: {name} {HALF}")
        return value


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: not JSON ({error.msg}); mend or make the file again") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise DatasetError(f"{path}:1: not JSON ({error}); mend or make the file again") from error
    except RecursionError as error:
        raise DatasetError(f"{path}:1: nested too deeply to be a list of records") from error
