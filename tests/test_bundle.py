"""Bundles on disk: a good one opens as a folder and as a zip, a damaged one is refused in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import ENTITIES, RELATIONS, tiny_facts, tiny_tables, write_tiny_bundle, write_tower

from pmd.serving import BundleError
from pmd.serving.archive import ALIGNMENT, ZipSource, is_safe_name, npy_array, pack
from pmd.serving.bundle import (
    ENTITY,
    GRAPH,
    KNOWN,
    MANIFEST,
    MODEL,
    QUERY,
    REQUIRED,
    SCALES,
    TABLE_FILES,
    TOKENIZER,
    VECTORS,
    Bundle,
    seal,
    write_tables,
)
from pmd.serving.manifest import FIELDS, MOST_BYTES
from pmd.serving.rows import ChangedRows, EntityRow, TextRows, format_rows

FILES = [
    *TABLE_FILES,
    *(
        f"{tower}/{name}"
        for tower in (QUERY, ENTITY)
        for name in (MODEL, TOKENIZER, "config.json", "tokenizer_config.json")
    ),
    "README.md",
]


@pytest.fixture
def folder(tiny_int8_folder: Path, tmp_path: Path) -> Path:
    """A copy of the int8 bundle that a test may damage."""
    return Path(shutil.copytree(tiny_int8_folder, tmp_path / "bundle"))


@pytest.fixture
def zipped(tiny_int8_folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "bundle.zip"
    pack(tiny_int8_folder, target)
    return target


def refusal(path: Path, **options: bool) -> str:
    """The message with which a bundle is refused; always one line that names the bundle."""
    with pytest.raises(BundleError) as raised:
        Bundle.open(path, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def change_manifest(folder: Path, change) -> None:
    """Change what a manifest says, without its digest, as in a bundle from before there was one."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("digest", None)
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def reseal(folder: Path) -> None:
    """Make the manifest fit the files again, so that only their content can be refused."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    seal(folder, manifest)


# ---- good bundles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["used", False, True])
def test_a_good_bundle_opens_as_it_was_written(tiny_folder, verify):
    bundle, tables = Bundle.open(tiny_folder, verify=verify), tiny_tables()
    assert sorted(bundle.files()) == sorted(set(FILES) - {SCALES})
    assert tuple(bundle.tables.entities) == ENTITIES
    assert tuple(bundle.tables.relations) == RELATIONS
    for part in ("keys", "offsets", "answers", "splits"):
        np.testing.assert_array_equal(getattr(bundle.tables.known, part), getattr(tables.known, part))
    for part in ("offsets", "targets"):
        np.testing.assert_array_equal(getattr(bundle.tables.graph, part), getattr(tables.graph, part))
    np.testing.assert_array_equal(bundle.tables.vectors.values, tables.vectors.values)


def test_a_zip_is_the_folder(tiny_int8_folder, zipped):
    ours, theirs = Bundle.open(zipped, verify=True), Bundle.open(tiny_int8_folder)
    assert ours.manifest == theirs.manifest
    assert tuple(ours.tables.entities) == tuple(theirs.tables.entities)
    np.testing.assert_array_equal(ours.tables.vectors.values, theirs.tables.vectors.values)
    np.testing.assert_array_equal(ours.tables.vectors.scales, theirs.tables.vectors.scales)
    for name in theirs.files():
        assert ours.read_verified(name) == (tiny_int8_folder / name).read_bytes()


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_vectors_are_memory_mapped_and_read_only(tiny_folder, tmp_path, form):
    path = tiny_folder
    if form == "zip":
        path = tmp_path / "bundle.zip"
        pack(tiny_folder, path)
    values = Bundle.open(path).tables.vectors.values
    base = values
    while isinstance(base, np.ndarray) and base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert values.flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1


def test_a_bundle_without_entity_tower_opens_whether_the_manifest_lists_it_or_not(folder, tmp_path):
    assert Bundle.open(folder).has_tower(ENTITY)
    shutil.rmtree(folder / ENTITY)
    assert not Bundle.open(folder, verify=True).has_tower(ENTITY)
    written = write_tiny_bundle(tmp_path / "without", entity_tower=False)
    assert not Bundle.open(written, verify=True).has_tower(ENTITY)


def test_packing_is_the_same_bytes_every_time_and_aligned(tiny_int8_folder, zipped, tmp_path):
    os.utime(tiny_int8_folder / "README.md")
    pack(tiny_int8_folder, tmp_path / "again.zip")
    assert zipped.read_bytes() == (tmp_path / "again.zip").read_bytes()
    source = ZipSource.open(zipped)
    assert {start % ALIGNMENT for start, _ in source._places.values()} == {0}
    with zipfile.ZipFile(zipped) as archive:
        assert archive.testzip() is None


def test_a_zip_made_by_another_tool_opens_although_unaligned(tiny_folder, tmp_path):
    target = tmp_path / "other.zip"
    with zipfile.ZipFile(target, "w") as archive:
        archive.mkdir("query")
        for path in sorted(tiny_folder.rglob("*")):
            archive.write(path, path.relative_to(tiny_folder).as_posix()) if path.is_file() else None
    vectors = Bundle.open(target, verify=True).tables.vectors
    queries = vectors.vectors()[:3]
    np.testing.assert_array_equal(vectors.scores(queries), Bundle.open(tiny_folder).tables.vectors.scores(queries))


def test_links_to_files_are_followed(tiny_folder, tmp_path):
    """Model hub caches keep a snapshot as links into a store of files."""
    for name in [MANIFEST, *Bundle.open(tiny_folder).files()]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(tiny_folder / name)
    Bundle.open(tmp_path, verify=True)


# ---- damaged files ------------------------------------------------------------------------------------------


def test_paths_that_are_no_bundle(tmp_path):
    assert "no bundle at" in refusal(tmp_path / "absent")
    assert f"no {MANIFEST} at its top level" in refusal(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    assert "not a readable zip" in refusal(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 and nothing more")
    assert "not a readable zip" in refusal(tmp_path / "b.zip")


@pytest.mark.parametrize("name", FILES)
def test_every_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"{name} is missing" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_every_truncated_file_is_named(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    assert f"{name} has {len(data) - 1} bytes, the manifest says {len(data)}" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_every_edited_file_is_found_with_verify(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1  # the last byte is data or a line break, never a length
    (folder / name).write_bytes(data)
    refusal(folder, verify=True)


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("README.md",)])
def test_a_truncated_file_that_the_manifest_agrees_with_is_still_no_traceback(folder, name):
    """Cut in half and resealed: the reader, or the tower when it is opened, finds it, or it is a file of others."""
    from pmd.serving.encoder import TowerEncoder

    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    reseal(folder)
    if name.endswith("config.json"):
        Bundle.open(folder, verify=True)
        return
    with pytest.raises(BundleError) as raised:
        for tower in (QUERY, ENTITY):
            TowerEncoder.load(Bundle.open(folder), tower, threads=1)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize("name", [*REQUIRED, SCALES])
def test_a_manifest_that_lists_too_little_is_refused(folder, name):
    change_manifest(folder, lambda manifest: manifest["files"].pop(name))
    assert f"lists no {name}" in refusal(folder)


# ---- the manifest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", FIELDS)
def test_every_key_is_required_and_has_a_type(folder, key):
    good = json.loads((folder / MANIFEST).read_text())
    change_manifest(folder, lambda manifest: manifest.pop(key))
    assert ("schema" if key == "schema" else f"has no '{key}'") in refusal(folder)
    (folder / MANIFEST).write_text(json.dumps(good))
    change_manifest(folder, lambda manifest: manifest.update({key: True}))  # a boolean is not a whole number
    assert key in refusal(folder)


def set_to(*path_and_value):
    *path, last, value = path_and_value

    def change(manifest):
        for key in path:
            manifest = manifest[key]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("schema", "pmd-bundle/2"), "newer than the pmd-bundle/1 this version reads; upgrade"),
        (set_to("schema", "pmd-bundle/0"), "expected 'pmd-bundle/1'"),
        (set_to("schema", "other/1"), "expected 'pmd-bundle/1'"),
        (set_to("width", 8), "entities.npy is 16 wide, the manifest says 8"),
        (set_to("width", 0), "'width' must be at least 1"),
        (set_to("max_tokens", 3), "'max_tokens' must be at least 5"),
        (set_to("max_tokens", 10**400), "'max_tokens' must be at most 65536"),
        (set_to("vectors", "dtype", "int4"), "vectors.dtype must be one of int8, float32, found 'int4'"),
        (set_to("vectors", "dtype", ["int8"]), "vectors.dtype must be one of"),
        (set_to("vectors", "dtype", "float32"), "entity vectors are int8, expected float32"),
        (set_to("rerank", {"hops": 0, "weight": 0.1}), "rerank.hops"),
        (set_to("rerank", {"hops": 1, "weight": "much"}), "rerank.weight"),
        (set_to("rerank", {"hops": 1, "weight": 10**400}), "rerank.weight must be between -1e+06 and 1e+06"),
        (set_to("changes", [1, 2]), "changes must hold the numbers"),
        (set_to("changes", {"added": "one"}), "changes must hold the numbers"),
        (set_to("templates", "inverse", "{nobody}"), "template inverse has unknown field 'nobody'"),
        (set_to("templates", "colour", "red"), "unknown text template 'colour'"),
        (set_to("templates", "neighbours", 10**400), "text template 'neighbours' is too large"),
        (set_to("templates", "entity", "{name}" * 10_000), "text template 'entity' is too large"),
        (set_to("templates", "neighbours", "ten"), "text template 'neighbours' must be a whole number"),
        (set_to("files", "../outside", {"bytes": 1, "sha256": ""}), "'../outside' is absolute or climbs out"),
        (set_to("files", "/etc/passwd", {"bytes": 1, "sha256": ""}), "'/etc/passwd' is absolute or climbs out"),
        (set_to("files", "known.npz", "bytes", "many"), "files['known.npz'] must hold"),
        (set_to("files", "known.npz", None), "files['known.npz'] must hold"),
        (set_to("files", "x" * 5000, {"bytes": 1, "sha256": ""}), "cannot be read"),
    ],
)
def test_wrong_values_are_named(folder, change, message):
    change_manifest(folder, change)
    assert message in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": NaN}', "\udcff", "[" * 100_000])
def test_a_manifest_that_is_no_json_object(folder, text):
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert MANIFEST in refusal(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"seed": 1, "seed": 2}', "the key 'seed' is there twice"),
        ('{"seed": 1e400}', "1e400 is larger than any number"),
        ('{"seed": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
)
def test_json_that_readers_understand_differently(folder, text, reason):
    (folder / MANIFEST).write_text(text)
    assert reason in refusal(folder)


def test_a_manifest_of_any_size_is_not_read(folder):
    with open(folder / MANIFEST, "r+b") as file:
        file.truncate(MOST_BYTES + 1)
    assert "expected at most 16,777,216" in refusal(folder)


def test_a_manifest_vouches_for_itself(folder):
    """A digit of max_tokens changes answers; nothing else in a bundle would tell."""
    text = (folder / MANIFEST).read_text()
    changed = text.replace('"max_tokens": 24', '"max_tokens": 23')
    assert changed != text
    (folder / MANIFEST).write_text(changed)
    assert "is not what its own digest says" in refusal(folder, verify=False)
    (folder / MANIFEST).write_text(json.dumps(json.loads(text)))  # the same facts, in other words
    Bundle.open(folder)


def test_keys_of_others_are_kept(folder):
    change_manifest(folder, set_to("note", "mine"))
    assert Bundle.open(folder).manifest["note"] == "mine"


def test_seal_refuses_facts_and_folders_that_are_not_complete(tmp_path):
    tables = tiny_tables()
    facts = tiny_facts(tables, "fp32", "float32")
    write_tables(tmp_path, tables)
    with pytest.raises(BundleError, match=r"lists no query/onnx/model\.onnx, query/tokenizer\.json"):
        seal(tmp_path, facts)
    write_tower(tmp_path / QUERY, quantised=False)
    with pytest.raises(BundleError, match="has no 'grade'"):
        seal(tmp_path, {key: value for key, value in facts.items() if key != "grade"})
    assert not (tmp_path / MANIFEST).exists()
    assert seal(tmp_path, facts) == Bundle.open(tmp_path, verify=True).manifest


# ---- the tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("entities.tsv", b"aspirin\taspirin\n", "line 1: expected 3 columns, found 2"),
        ("entities.tsv", b"aspirin\t\xff\t\n", "not UTF-8"),
        ("entities.tsv", b"a\ta\t\nb\tb\t", "does not end in a line break"),
        ("entities.tsv", b"", "has no entity"),
        ("entities.tsv", b"a\ta\t\na\tb\t\n", "entity id 'a' is there twice"),
        ("entities.tsv", b"\ta\t\n", "entity id is empty"),
        ("entities.tsv", b"a\ta\t\nb\tb\t\n", "entity vectors have shape (12, 16), expected (2, width)"),
        ("relations.tsv", b"", "has no relation"),
        ("relations.tsv", b"a\tb\tc\n", "line 1: expected 2 columns, found 3"),
        ("relations.tsv", b"treats\ttreats\n", "a key of the known answers is out of range"),
    ],
)
def test_text_tables_that_do_not_fit(folder, name, data, message):
    (folder / name).write_bytes(data)
    reseal(folder)
    assert message in refusal(folder)


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


def part(name: str, folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / name) as arrays:
        return {key: arrays[key].copy() for key in arrays}


def with_value(index: int, value: int):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        (KNOWN, "keys", with_value(-1, 72), "a key of the known answers is out of range"),
        (KNOWN, "keys", with_value(0, -1), "a key of the known answers is out of range"),
        (KNOWN, "keys", with_value(1, 0), "keys of the known answers do not rise"),
        (KNOWN, "keys", lambda a: a.astype(np.int32), "keys of the known answers are int32"),
        (KNOWN, "offsets", with_value(0, 1), "offsets of the known answers do not rise"),
        (KNOWN, "offsets", with_value(2, 99), "offsets of the known answers do not rise"),
        (KNOWN, "offsets", lambda a: a[:-1], "offsets of the known answers are int64 of shape"),
        (KNOWN, "answers", with_value(0, 12), "entity in the known answers is out of range"),
        (KNOWN, "answers", with_value(0, -1), "entity in the known answers is out of range"),
        (KNOWN, "answers", lambda a: np.sort(a)[::-1].copy(), "entities of a row of the known answers do not rise"),
        (KNOWN, "answers", lambda a: a[:-1], "offsets of the known answers do not rise"),
        (KNOWN, "splits", lambda a: a[:-1], "splits of the known answers are uint8 of shape"),
        (KNOWN, "answers", lambda a: a[None], "values of the known answers are int32 of shape"),
        (KNOWN, "splits", with_value(0, 3), "a split of the known answers is not one of 0 to 2"),
        (GRAPH, "offsets", with_value(-1, 0), "offsets of the neighbour graph do not rise"),
        (
            GRAPH,
            "offsets",
            lambda a: a[:-1],
            "offsets of the neighbour graph are int64 of shape (12,), expected int64 (13,)",
        ),
        (GRAPH, "targets", with_value(0, 12), "entity in the neighbour graph is out of range"),
        (
            GRAPH,
            "targets",
            lambda a: a.astype(np.float32),
            "values of the neighbour graph are float32",
        ),
        (GRAPH, "targets", lambda a: a.astype(object), "not an array of plain numbers"),
    ],
)
def test_index_tables_that_do_not_fit(folder, name, key, change, message):
    arrays = part(name, folder)
    arrays[key] = change(arrays[key])
    (folder / name).write_bytes(npz(**arrays))
    reseal(folder)
    assert message in refusal(folder)


def test_an_npz_with_an_array_too_few_or_compressed(folder):
    arrays = part(KNOWN, folder)
    np.savez_compressed(folder / KNOWN, **arrays)
    reseal(folder)
    assert "compressed" in refusal(folder)
    del arrays["splits"]
    np.savez(folder / KNOWN, **arrays)
    reseal(folder)
    assert "splits.npy is missing" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (VECTORS, np.zeros((12, 16), np.float32), "entity vectors are float32, expected int8"),
        (VECTORS, np.zeros((11, 16), np.int8), "shape (11, 16), expected (12, width)"),
        (VECTORS, np.zeros(12, np.int8), "shape (12,)"),
        (VECTORS, np.zeros((12, 8), np.int8), "entities.npy is 8 wide, the manifest says 16"),
        (SCALES, np.zeros(11, np.float32), "scales of the entity vectors are float32 of shape (11,)"),
        (SCALES, np.zeros(12, np.float64), "scales of the entity vectors are float64"),
        (SCALES, np.full(12, np.nan, np.float32), "a scale of the entity vectors is not a positive number"),
        (SCALES, np.zeros(12, np.float32), "a scale of the entity vectors is not a positive number"),
    ],
)
def test_vector_tables_that_do_not_fit(folder, name, array, message):
    np.save(folder / name, array)
    reseal(folder)
    assert message in refusal(folder)


class Boom:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [VECTORS, SCALES])
def test_a_numpy_file_never_unpickles(folder, tmp_path, name):
    trap = tmp_path / "unpickled"
    np.save(folder / name, np.array([Boom(trap)] * 12, dtype=object), allow_pickle=True)
    reseal(folder)
    refusal(folder)
    (folder / name).write_bytes(pickle.dumps(Boom(trap)))
    reseal(folder)
    refusal(folder)
    assert not trap.exists()
    np.load(io.BytesIO(pickle.dumps(Boom(trap))), allow_pickle=True)
    assert trap.exists()  # the trap works


def read_rows(data: bytes) -> TextRows[EntityRow]:
    return TextRows(np.frombuffer(data, np.uint8), EntityRow, "t")


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_characters="\t\n", codec="utf-8"))] * 3)))
def test_rows_are_read_as_they_were_written(rows):
    rows = [EntityRow(*row) for row in rows]
    read = read_rows(format_rows(rows, "t"))
    assert list(read) == rows == read[:]
    assert read[::-2] == rows[::-2]
    assert [read.column(number) for number in range(3)] == [[row[number] for row in rows] for number in range(3)]
    assert [tuple(read.cell(place, number) for number in range(3)) for place in range(len(rows))] == rows
    fresh = read_rows(format_rows(rows, "t"))  # no column of it was read as a whole
    assert [tuple(fresh.cell(place, number) for number in range(3)) for place in range(len(rows))] == rows
    assert [read[-place] for place in range(1, len(rows) + 1)] == rows[::-1]
    with pytest.raises(IndexError):
        read[len(rows)]


def test_rows_with_others_laid_over_them():
    rows = [EntityRow(str(number), "", "") for number in range(4)]
    changed = ChangedRows.over(rows, 2, EntityRow("two", "", ""))
    grown = ChangedRows.over(changed, 4, EntityRow("four", "", ""))
    assert [row.id for row in grown] == ["0", "1", "two", "3", "four"]
    assert [row.id for row in changed] == ["0", "1", "two", "3"]
    assert [grown.cell(place, 0) for place in range(5)] == ["0", "1", "two", "3", "four"]
    assert [row.id for row in rows] == ["0", "1", "2", "3"]
    assert [row.id for row in grown[1:3]] == ["1", "two"]
    with pytest.raises(IndexError):
        changed[4]


def test_rows_survive_every_character_but_tabs_and_line_feeds():
    odd = "a\u2028b\x0bc\x85d\r e"  # str.splitlines would break at each of these
    rows = [EntityRow("id", odd, "")]
    assert list(read_rows(format_rows(rows, "t"))) == rows
    for bad in ("a\tb", "a\nb"):
        with pytest.raises(BundleError, match="row of 'id' holds a tab or a line break"):
            format_rows([EntityRow("id", bad, "")], "t")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_array_are_refused(data):
    with pytest.raises(BundleError):
        npy_array(np.frombuffer(b"\x93NUMPY\x01\x00" + data, np.uint8), "x")


@pytest.mark.parametrize("shape", ["12 16", "0, " + "9" * 30, "0, " * 70, "9" * 3000, "01, 0", "1" * 60 + "x"])
def test_a_header_with_a_shape_of_no_array(shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with pytest.raises(BundleError, match=r"damaged or cut|not an array of plain numbers"):
        npy_array(np.frombuffer(data, np.uint8), "x.npy")


def test_a_header_that_promises_more_than_there_is():
    file = io.BytesIO()
    np.save(file, np.zeros(4, np.float32))
    data = file.getvalue().replace(b"(4,), }              ", b"(4000000000000000,), }")[: len(file.getvalue())]
    with pytest.raises(BundleError, match="damaged or cut"):
        npy_array(np.frombuffer(data, np.uint8), "x")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.float32])
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), (0, 5), ()])
def test_arrays_survive(dtype, shape):
    file = io.BytesIO()
    array = np.ones(shape, dtype)
    np.save(file, array)
    read = npy_array(np.frombuffer(file.getvalue(), np.uint8), "x")
    np.testing.assert_array_equal(read, array)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)


# ---- zips ---------------------------------------------------------------------------------------------------


def write_zip(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with pytest.warns(UserWarning, match="Duplicate") if len(dict(members)) < len(members) else open(os.devnull):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in members:
                archive.writestr(name, data)
    return path


def test_a_compressed_zip_is_refused(tiny_folder, tmp_path):
    members = [(MANIFEST, (tiny_folder / MANIFEST).read_bytes())]
    message = refusal(write_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED))
    assert "is compressed; pack it uncompressed (zip -0)" in message


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a//b", "./a", "C:/x", "a\\b"])
def test_names_that_climb_are_refused(tmp_path, name):
    assert not is_safe_name(name)
    assert "absolute or climbs out" in refusal(write_zip(tmp_path / "a.zip", [(MANIFEST, b"{}"), (name, b"x")]))


def test_the_same_name_twice_is_refused(tmp_path):
    assert "is there twice" in refusal(write_zip(tmp_path / "a.zip", [(MANIFEST, b"{}"), (MANIFEST, b"[]")]))


def test_an_encrypted_member_is_refused(zipped):
    data = bytearray(zipped.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1  # the flag in the directory, as encrypting tools set it
    zipped.write_bytes(data)
    assert "is encrypted" in refusal(zipped, verify=False)


def test_a_bundle_below_the_top_level_of_a_zip_says_so(tiny_folder, tmp_path):
    path = write_zip(tmp_path / "a.zip", [(f"bundle/{MANIFEST}", (tiny_folder / MANIFEST).read_bytes())])
    assert "at its top level" in refusal(path)


def test_a_directory_that_points_elsewhere_is_refused(zipped):
    data = bytearray(zipped.read_bytes())
    directory = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, directory + 42, 5)  # header offset of the first member
    zipped.write_bytes(data)
    assert "has no header where the directory says" in refusal(zipped, verify=False)


def test_a_size_past_the_end_is_refused(zipped):
    data = bytearray(zipped.read_bytes())
    directory = data.index(b"PK\x01\x02")
    struct.pack_into("<LL", data, directory + 20, 1 << 30, 1 << 30)
    zipped.write_bytes(data)
    assert "runs past the end" in refusal(zipped, verify=False)


@pytest.fixture(scope="module")
def zip_bytes(tiny_int8_folder, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("zip") / "bundle.zip"
    pack(tiny_int8_folder, path)
    return path.read_bytes()


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_zip_with_any_byte_of_its_directory_changed_opens_or_is_refused(zip_bytes, tmp_path_factory, changes):
    content = bytearray(zip_bytes)
    directory = content.index(b"PK\x01\x02")
    for where, value in changes:
        content[directory + int(where * (len(content) - 1 - directory))] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
    path.write_bytes(content)
    try:
        Bundle.open(path, verify=True)
    except BundleError as error:
        assert "\n" not in str(error)


@given(st.floats(0, 1, exclude_max=True))
def test_a_cut_zip_is_refused(zip_bytes, tmp_path_factory, where):
    path = tmp_path_factory.getbasetemp() / "cut.zip"
    path.write_bytes(zip_bytes[: int(where * len(zip_bytes))])
    refusal(path)


# ---- what is checked when ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [VECTORS, f"{QUERY}/{MODEL}", f"{QUERY}/{TOKENIZER}", f"{ENTITY}/{MODEL}", "README.md"]
)
def test_what_is_used_is_checked_before_it_is_used(folder, name):
    """By default: tables at once, a tower when it is opened, and what no answer rests on not at all."""
    from pmd.serving.encoder import TowerEncoder

    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    if name == VECTORS:
        assert f"{name} is not what the manifest's sha256 says" in refusal(folder)
        Bundle.open(folder, verify=False)
        return
    bundle = Bundle.open(folder)
    tower = name.partition("/")[0]
    for other in {QUERY, ENTITY} - {tower}:
        TowerEncoder.load(bundle, other, threads=1)
    if tower in (QUERY, ENTITY):
        with pytest.raises(BundleError, match=f"{name} is not what the manifest's sha256 says"):
            TowerEncoder.load(bundle, tower, threads=1)


def test_what_stands_in_a_file_s_place_is_never_opened(folder):
    """A FIFO would wait for a writer, a device would never end."""
    (folder / VECTORS).unlink()
    os.mkfifo(folder / VECTORS)
    assert "is missing" in refusal(folder)
    (folder / KNOWN).unlink()
    (folder / KNOWN).symlink_to("/dev/zero")
    (folder / VECTORS).unlink()
    (folder / VECTORS).write_bytes(b"")
    assert "known.npz is missing" in refusal(folder) or "entities.npy has 0 bytes" in refusal(folder)
