"""Fuzzing of binary and tabular files: numpy arrays, zips, rows of text, journals and safetensors."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_engine import Broken, Surface, fuzz, settled
from tests.trust.fuzz_mutation import mutated, odd_value, tree_bytes

PART = "fuzzing"


def arrays(folder: Path) -> Surface:
    """`npy_array`: a BundleError, or what numpy itself reads without pickle."""
    import numpy as np

    from pmd.serving.archive import npy_array
    from pmd.serving.errors import BundleError

    def check(data: bytes) -> str:
        def run() -> str:
            found = npy_array(np.frombuffer(data, np.uint8), "x.npy")
            expected = np.load(io.BytesIO(data), allow_pickle=False)
            if found.dtype != expected.dtype or found.shape != expected.shape:
                raise Broken(f"{found.dtype} {found.shape}, numpy says {expected.dtype} {expected.shape}")
            if found.tobytes() != expected.tobytes():
                raise Broken("other numbers than numpy reads")
            return "read"

        return settled(run, BundleError)

    kinds = ("i1", "u1", "<i4", "<i8", "<f4", "<f8")
    seeds = [_npy(np.arange(6).astype(kind).reshape(2, 3)) for kind in kinds]
    seeds += [
        _npy(np.asfortranarray(np.arange(6, dtype="f4").reshape(3, 2))),
        _npy(np.zeros(0, "i8")),
        _npy(np.array(["a"], object)),
    ]
    return Surface(tuple(seeds), check, _other_header)


def _npy(array: object) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.save(file, array)  # type: ignore[arg-type]
    return file.getvalue()


def _other_header(rng: random.Random, data: bytes) -> bytes:
    """The same numbers under a header with other values."""
    body = data[128:]
    shape = rng.choice(
        ("(2, 3)", "(6,)", "()", "(-1,)", f"({2 ** rng.choice((31, 62, 64))}, 0)", "(1," * 33 + ")", "(0x2, 3)")
    )
    kind = rng.choice(("'<f4'", "'|O'", "'<U3'", "'>i4'", "'<c8'", "'|V4'", "[('a', '<i4')]", "'<i4'", "'|i1'"))
    header = f"{{'descr': {kind}, 'fortran_order': {rng.choice(('True', 'False', '1'))}, 'shape': {shape}, }}"
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", rng.choice((len(padded), 0, 65535))) + padded + body


def zips(folder: Path) -> Surface:
    """`ZipSource` and `npz_arrays`: a BundleError, or the members that `zipfile` reads."""
    import numpy as np

    from pmd.serving.archive import ZipSource, npz_arrays
    from pmd.serving.errors import BundleError

    def check(data: bytes) -> str:
        held = np.frombuffer(data, np.uint8)

        def run() -> str:
            source = ZipSource(held, "x.zip")
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for name in source.names():
                    if name.startswith(("/", "\\")) or ".." in name.split("/"):
                        raise Broken(f"the member {name!r} climbs")
                    _same_member(source.mapped(name).tobytes(), archive, name)
            return "read"

        outcome = settled(run, BundleError)
        settled(lambda: str(len(npz_arrays(held, "x.npz", "keys", "offsets"))), BundleError)
        return outcome

    seeds = []
    for compress in (False, True):
        file = io.BytesIO()
        (np.savez_compressed if compress else np.savez)(file, keys=np.arange(5), offsets=np.arange(3, dtype="i4"))
        seeds.append(file.getvalue())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a/b.txt", "ü.txt", "../c", "/d", "a/b.txt/", "e\\f"):
            archive.writestr(name, name * 3)
    return Surface((*seeds, file.getvalue()), check, _other_directory)


def _same_member(found: bytes, archive: zipfile.ZipFile, name: str) -> None:
    """Raise Broken unless zipfile, where it reads a member and its checksum holds, reads the same bytes."""
    try:
        expected = archive.read(name)
    except (
        zipfile.BadZipFile,
        KeyError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
        EOFError,
        zlib.error,
    ):
        return
    if found != expected:
        raise Broken(f"the member {name!r} is {found[:20]!r}, zipfile says {expected[:20]!r}")


def _other_directory(rng: random.Random, data: bytes) -> bytes:
    """Numbers of the central directory and of the headers replaced by odd ones."""
    places = [at for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for at in _all(data, mark)]
    if not places:
        return mutated(rng, data)
    at = rng.choice(places) + rng.randrange(4, 46)
    number = rng.choice((0, 1, 0xFFFF, 0xFFFFFFFF, len(data), len(data) - 1, 0x7FFFFFFF))
    packed = struct.pack("<I", number)[: rng.choice((1, 2, 4))]
    return data[:at] + packed + data[at + len(packed) :]


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def rows(folder: Path) -> Surface:
    """`TextRows`: a BundleError, or the rows that lines and tabs give, which `format_rows` writes back."""
    import numpy as np

    from pmd.serving.errors import BundleError
    from pmd.serving.rows import EntityRow, TextRows, cell, column, format_rows

    def check(data: bytes) -> str:
        def run() -> str:
            found = TextRows(np.frombuffer(data, np.uint8), EntityRow, "entities.tsv")
            expected = [tuple(line.split("\t")) for line in data.decode("utf-8").split("\n")[:-1]]
            cells = [tuple(cell(found, row, number) for number in range(3)) for row in range(len(found))]
            if not [tuple(row) for row in found] == expected == cells:
                raise Broken("other rows than lines and tabs give")
            if [column(found, number) for number in range(3)] != [
                [row[number] for row in expected] for number in range(3)
            ]:
                raise Broken("other columns than lines and tabs give")
            if format_rows(list(found), "entities.tsv") != data:
                raise Broken("written again it is another file")
            return "read"

        return settled(run, BundleError)

    return Surface((b"a\tb\tc\nd\t\t\n", "ü\té\t👩\n".encode(), b"", b"a\tb\tc"), check)


def journals(folder: Path) -> Surface:
    """`Journal`: a JournalError, or changes that go on; what was whole before a torn end is never lost."""
    import numpy as np

    from pmd.serving.journal import Change, Journal, JournalError
    from pmd.serving.rows import EntityRow

    path = folder / "x.journal"
    vector = np.ones(4, np.float32) / 2
    journal = Journal.open(path, "bundle", None)
    for change in (Change("a", EntityRow("a", "A", "")), Change("b"), Change("ü", EntityRow("ü", "Ü", "x"))):
        journal.write(change._replace(vector=vector) if change.row else change)
    journal.close()
    whole = path.read_bytes()

    def check(data: bytes) -> str:
        path.write_bytes(data)

        def run() -> str:
            journal = Journal.open(path, "bundle", None)
            try:
                changes = list(journal.replay(4, None))
                journal.write(Change("z"))
            finally:
                journal.close()
            again = Journal.open(path, "bundle", None)
            try:
                entities = [change.entity for change in again.replay(4, None)]
            finally:
                again.close()
            whole = _whole_changes(data)
            if [change.entity for change in changes] != whole:
                raise Broken(f"{len(changes)} changes were read, {len(whole)} are whole")
            if entities != [*whole, "z"]:
                raise Broken(f"held {len(changes)} changes, and {entities[-3:]} after one more")
            return "read"

        return settled(run, JournalError)

    return Surface((whole, whole[:-20]), check, _resealed)


def _whole_changes(data: bytes) -> list[str]:
    """Ids of the changes in a journal, up to the first line whose checksum does not fit."""
    import json

    found = []
    for line in data.split(b"\n")[1:-1]:
        if line[:9] != f"{zlib.crc32(line[9:]):08x} ".encode():
            break
        found.append(str(json.loads(line[9:])["id"]))
    return found


def _resealed(rng: random.Random, data: bytes) -> bytes:
    """One line with other JSON, under a checksum that fits."""
    import json

    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    try:
        record = tree_bytes(rng, json.loads(lines[place][9:]))
    except ValueError:
        record = json.dumps(odd_value(rng)).encode()
    lines[place] = f"{zlib.crc32(record):08x} ".encode() + record
    return b"\n".join(lines)


def checkpoints(folder: Path) -> Surface:
    """`load_checkpoint` of a safetensors file: a RunError, or its tensors and counters."""
    import torch

    from pmd.checkpoint import StageState, load_checkpoint, save_checkpoint
    from pmd.errors import RunError

    path = folder / "checkpoint.safetensors"
    save_checkpoint(
        path,
        {"model": {"w": torch.ones(2, 3), "b": torch.zeros(2)}, "optimizer": {"0.step": torch.tensor(1.0)}},
        StageState("teacher", "hash"),
    )
    whole = path.read_bytes()

    def check(data: bytes) -> str:
        path.write_bytes(data)

        def run() -> str:
            sections, state = load_checkpoint(path, "teacher")
            for tensors in sections.values():
                for tensor in tensors.values():
                    tensor.numel()
            return "read" if state.stage == "teacher" else "read, odd"

        return settled(run, RunError)

    return Surface((whole,), check, _other_tensors)


def _other_tensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header lies: other names, shapes, kinds, places, lengths."""
    import json

    (size,) = struct.unpack("<Q", data[:8]) if len(data) >= 8 else (0,)
    try:
        header = tree_bytes(rng, json.loads(data[8 : 8 + size]))
    except ValueError:
        return mutated(rng, data)
    stated = len(header) if rng.random() < 0.9 else rng.choice((0, 2**63, 2**32, len(header) + 1, len(data)))
    return struct.pack("<Q", stated) + header + data[8 + size :]


def _attack(name: str, what: str, shares: dict[Callable[[Path], Surface], int], quick: int, full: int) -> Attack:
    def run(ground: Ground) -> Tally:
        tally = Tally()
        for surface, share in shares.items():
            fuzz(f"fuzz_tables:{surface.__name__}", max(1, ground.count * share // 100), ground, tally)
        return tally

    return Attack(name, PART, what, run, quick=quick, full=full)


ATTACKS = (
    _attack(
        "fuzz-archives",
        "Mutated .npy, .npz, .zip and tables of text: a BundleError, or what numpy, zipfile and splitting read",
        {arrays: 40, zips: 30, rows: 30},
        20_000,
        300_000,
    ),
    _attack(
        "fuzz-journals",
        "Mutated journals, torn or under a right checksum: a JournalError, or all changes that were whole",
        {journals: 100},
        1_500,
        40_000,
    ),
    _attack(
        "fuzz-checkpoints",
        "Safetensors files whose headers lie: a RunError, or a checkpoint",
        {checkpoints: 100},
        1_000,
        30_000,
    ),
)
