"""Fuzzing of dataset readers: files of every layout, and a round trip through its writer for what is read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_engine import Broken, Surface, fuzz, settled
from tests.trust.fuzz_mutation import ODD_TEXTS

if TYPE_CHECKING:
    from pmd.graph import KnowledgeGraph

BETWEEN = b"\n--8<--\n"
"""Parts one input into the files of a folder."""
NAMES = {
    "tsv": ("entities.tsv", "relations.tsv", "train.tsv", "valid.tsv"),
    "simkgc": ("entities.json", "relations.json", "train.txt.json", "test.txt.json"),
    "kgbert": ("entity2text.txt", "relation2text.txt", "train.tsv", "dev.tsv", "entity2textlong.txt"),
    "csv": ("entities.csv", "relations.csv", "train.csv", "test.csv"),
    "parquet": ("train.parquet",),
    "nt": ("texts.nt", "train.nt", "valid.nt"),
    "turtle": ("texts.ttl", "train.ttl"),
    "bare": ("train.tsv", "valid.tsv"),
}


def small_graph() -> KnowledgeGraph:
    """Four entities with texts that are hard to quote, two relations, a triple or two in each split."""
    import numpy as np

    from pmd.graph import KnowledgeGraph

    return KnowledgeGraph(
        name="small",
        entity_ids=("a_b", "http://x.org/b", "c d", "Ünï"),
        names=("a b", 'b "quoted", with a comma', "c\\d", "ünï 👩‍👩‍👧"),
        descriptions=("a first one", "", "it's; 1,5", "x"),
        relation_ids=("is_a", "part of"),
        relation_texts=("is a", "part of"),
        train=np.array([[0, 0, 1], [1, 1, 2], [2, 0, 3]]),
        valid=np.array([[0, 1, 3]]),
        test=np.array([[3, 0, 0]]),
    )


def layout(folder: Path, name: str) -> Surface:
    """A DatasetError, or a graph that is sound and the same when it is written and read again."""
    from pmd.datasets import layouts
    from pmd.errors import DatasetError

    seeds, given = folder / "seeds", folder / "graph"
    for path in (seeds, given):
        path.mkdir()
    graph = small_graph()
    layouts.WRITERS[name](_bare(graph) if name == "bare" else graph, seeds)
    whole = BETWEEN.join((seeds / file).read_bytes() for file in NAMES[name])
    read = layouts.read

    def check(data: bytes) -> str:
        _write(given, NAMES[name], data)

        def run() -> str:
            material = read(given, skip_unknown=len(data) % 2 == 1)
            graph = material.graph()
            _sound(graph)
            return _round_trip(graph, folder / "again", layouts.WRITERS[name], read)

        return settled(run, DatasetError)

    return Surface((whole, whole.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + whole), check, _renamed)


WORDS = (
    b"a_b",
    b"http://x.org/b",
    b"c d",
    b"is_a",
    b"part of",
    b"a first one",
    b"is a",
    b"a b",
    "Ünï".encode(),
    b"x",
)


def _renamed(rng: random.Random, data: bytes) -> bytes:
    """The same words replaced by an odd text wherever they stand, so that ids and texts still fit together."""
    for _ in range(rng.choice((1, 1, 2))):
        odd = rng.choice(ODD_TEXTS) if rng.random() < 0.8 else chr(rng.randrange(0x110000)) * rng.choice((1, 2))
        if rng.random() < 0.3:
            odd = rng.choice((f"{odd}z", f"z{odd}", f"z{odd}z"))
        written = odd if rng.random() < 0.5 else json.dumps(odd)[1:-1]
        data = data.replace(rng.choice(WORDS), written.encode("utf-8", "surrogatepass"))
    return data


def _bare(graph: KnowledgeGraph) -> KnowledgeGraph:
    from dataclasses import replace

    from pmd.datasets.material import in_words

    names, texts = (tuple(map(in_words, ids)) for ids in (graph.entity_ids, graph.relation_ids))
    return replace(graph, names=names, relation_texts=texts, descriptions=("",) * len(names))


def _write(folder: Path, names: tuple[str, ...], data: bytes) -> None:
    parts = data.split(BETWEEN) if len(names) > 1 else [data]
    for place, name in enumerate(names):
        if place < len(parts):
            (folder / name).write_bytes(parts[place])
        else:
            (folder / name).unlink(missing_ok=True)


def _sound(graph: KnowledgeGraph) -> None:
    """Raise Broken unless ids are distinct and not blank, names are there, and triples are in range."""
    for ids, names in ((graph.entity_ids, graph.names), (graph.relation_ids, graph.relation_texts)):
        if len(set(ids)) != len(ids) or not all(key.strip() for key in ids) or not all(names):
            raise Broken(f"ids {ids[:5]!r} with names {names[:5]!r}")
        for text in (*ids, *names):
            text.encode()
    for split in (graph.train, graph.valid, graph.test):
        limits = (graph.num_entities, graph.num_relations, graph.num_entities)
        if split.ndim != 2 or split.shape[1] != 3 or ((split < 0) | (split >= limits)).any():
            raise Broken(f"triples {split[:3].tolist()} of {limits}")
    graph.known()


def _round_trip(
    graph: KnowledgeGraph, folder: Path, write: Callable[..., None], read: Callable[..., object]
) -> str:
    """Write and read again, if the layout can hold the graph. Raises Broken where that gives another graph."""
    from pmd.datasets.convert import first_difference
    from pmd.errors import DatasetError

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        write(graph, folder)
    except DatasetError:
        return "read, not writable"
    found = first_difference(graph, read(folder).graph())  # type: ignore[attr-defined]
    if found:
        raise Broken(f"written and read again it differs: {found}")
    return "read"


def bulk(folder: Path) -> Surface:
    """Three columns by line and in bulk: the same triples, or a DatasetError where the bulk pass gives up."""
    import numpy as np

    from pmd.datasets.bulk import read_files
    from pmd.datasets.triples import Vocabulary, read_by_line
    from pmd.errors import DatasetError

    file = folder / "train.tsv"
    known = Vocabulary(["a", "b", "c", "d e"], ["r", "s"])

    def check(data: bytes) -> str:
        file.write_bytes(data)
        vocabulary = known if len(data) % 3 else Vocabulary()
        quick = read_files({"train": file}, vocabulary)

        def run() -> str:
            slow = read_by_line({"train": file}, vocabulary, skip_unknown=True)
            if quick is None:
                return "read by line alone"
            same = (slow.entities, slow.relations) == (quick.entities, quick.relations)
            if not same or not np.array_equal(slow.splits["train"], quick.splits["train"]):
                raise Broken(f"by line {slow}, in bulk {quick}")
            if slow.skipped != quick.skipped:
                raise Broken(f"by line {slow.skipped} are skipped, in bulk {quick.skipped}")
            return "read both ways"

        outcome = settled(run, DatasetError)
        if quick is not None and outcome == "DatasetError":
            raise Broken("read in bulk, refused by line")
        return outcome

    lines = "a\tr\tb\nb\ts\tc\nd e\tr\ta\n"
    return Surface((lines.encode(), lines.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + lines.encode()), check)


def __getattr__(name: str) -> Callable[[Path], Surface]:
    """`tsv`, `simkgc`, …: the surface of a layout, by its name."""
    if name not in NAMES:
        raise AttributeError(name)
    return partial(layout, name=name)


SHARES = {"tsv": 20, "simkgc": 20, "kgbert": 15, "csv": 12, "parquet": 8, "nt": 8, "turtle": 7, "bare": 10}


def _readers(ground: Ground) -> Tally:
    tally = Tally()
    for name, share in SHARES.items():
        fuzz(f"fuzz_readers:{name}", max(1, ground.count * share // 100), ground, tally)
    return tally


def _bulk(ground: Ground) -> Tally:
    tally = Tally()
    fuzz("fuzz_readers:bulk", ground.count, ground, tally)
    return tally


ATTACKS = (
    Attack(
        "fuzz-readers",
        "fuzzing",
        "Mutated dataset files of every layout: a DatasetError, or a sound graph, the same when written and read",
        _readers,
        quick=1_200,
        full=50_000,
    ),
    Attack(
        "fuzz-bulk-reading",
        "fuzzing",
        "Mutated three-column files, read in bulk and by line: the same triples both ways",
        _bulk,
        quick=3_000,
        full=60_000,
    ),
)
