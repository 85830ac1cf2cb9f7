"""Bundles made by hand to harm who opens them, sealed so that nothing but their content can be refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.case_child import Case
from tests.trust.case_pool import run_cases
from tests.trust.fuzz_engine import settled
from tests.trust.harms import MODEL, TOKENIZER, Harm, NamedHarm, harmed, sealed_file
from tests.trust.hostile_towers import graphs, tokenizers

HUGE, ALL_NINES = 10**400, "9" * 5000


def hostile_case(folder: Path) -> Case:
    """Cases in turn: each is refused in one line, or answers; none crashes, hangs or takes memory without end."""
    from pmd.serving import PmdError, Scorer
    from tests.tiny_bundle import write_tiny_bundle

    good = write_tiny_bundle(folder / "good", precision="int8")
    return harmed(
        folder,
        all_harms(),
        lambda place: shutil.copytree(good, place),
        lambda path: settled(lambda: _asked(Scorer.load(path, threads=1)), PmdError),
    )


def _asked(scorer: Any) -> str:
    for relation in scorer.relation_ids:
        scorer.top_tails(list(scorer.entity_ids)[:3], relation, k=5)
    scorer.top_tails("a" * 30_000, scorer.relation_ids[0], k=5, head_is_text=True)
    if scorer.bundle.manifest["rerank"]:
        scorer.top_tails(scorer.entity_ids[0], scorer.relation_ids[0], reranked=True)
    return "answered"


def all_harms() -> list[NamedHarm]:
    """Name, harm, and whether answering is right as well."""
    return [*_manifests(), *_places(), *_tables(), *_zips(), *graphs(), *tokenizers()]


# ---- the manifest -------------------------------------------------------------------------------------------


def _told(change: Callable[[dict[str, Any]], Any]) -> Harm:
    """A manifest that says something else, with a digest that fits."""

    def harm(bundle: Path) -> None:
        from pmd.serving.manifest import digest_of

        manifest = json.loads((bundle / "manifest.json").read_text())
        change(manifest)
        manifest["digest"] = digest_of(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))

    return harm


def _raw(old: str, new: str) -> Harm:
    """A manifest whose text was changed, with no digest."""

    def harm(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        del manifest["digest"]
        text = json.dumps(manifest)
        assert old in text
        (bundle / "manifest.json").write_text(text.replace(old, new, 1))

    return harm


def _manifests() -> list[NamedHarm]:
    entry = {"bytes": 1, "sha256": "0" * 64}
    names = (
        "../../etc/passwd",
        "/etc/passwd",
        "a\\..\\b",
        "C:/x",
        "query/../../x",
        "a\nb",
        "",
        ".",
        "x" * 5000,
        "a\0b",
    )
    found: list[NamedHarm] = [
        (f"a file named {name[:20]!r}", _told(lambda m, name=name: m["files"].update({name: entry})), False)
        for name in names
    ]
    wrong: dict[str, Any] = {
        "width": (2**62, HUGE, -1, True, 16.0),
        "max_tokens": (2**62, HUGE, 0, -5),
        "layers": (-1,),
        "rerank": ({"hops": 1, "weight": HUGE}, {"hops": -1, "weight": 0}, {"hops": 1, "weight": 1e308}),
        "templates": ({"neighbours": HUGE}, {"entity": "{name}" * 100_000}, {"inverse": "{0}"}),
        "vectors": ({"dtype": "object"}, {"dtype": ["int8"]}),
        "schema": ("pmd-bundle/" + ALL_NINES, "pmd-bundle/٣"),
        "journal": ({"name": 1, "changes": 1},),
        "files": ({}, [], {"manifest.json": {"bytes": HUGE, "sha256": "x"}}),
    }
    for key, values in wrong.items():
        for value in values:
            if key != "journal":
                label = f"{key} {str(value)[:20]}"
                found.append((label, _told(lambda m, key=key, value=value: m.update({key: value})), False))
    found.append(("10^18 hops", _told(lambda m: m.update(rerank={"hops": 10**18, "weight": 0.1})), True))
    found.append(
        ("numbers of 400 digits", _told(lambda m: m.update(grade=HUGE, seed=-HUGE, parameters=HUGE)), True)
    )
    found.append(
        ("100,000 files", _told(lambda m: m["files"].update({f"f{i}": entry for i in range(100_000)})), False)
    )
    text = {
        "a number of 5,000 digits": ('"seed": 0', f'"seed": {ALL_NINES}'),
        "NaN": ('"seed": 0', '"seed": NaN'),
        "an infinity": ('"max_cosine_gap": 0.0', '"max_cosine_gap": 1e999'),
        "a key twice": ('"seed": 0', '"seed": 0, "seed": 0'),
        "deep JSON": ('"seed": 0', '"seed": ' + "[" * 200_000),
        "deep JSON that is closed": ('"seed": 0', '"seed": 0, "more": ' + "[" * 900 + "]" * 900),
        "half a surrogate": ('"dataset": "tiny"', '"dataset": "\\ud800"'),
        "a byte order mark": ("{", "\ufeff{"),
    }
    opens = ("deep JSON that is closed", "half a surrogate")
    return found + [(name, _raw(*change), name in opens) for name, change in text.items()]


# ---- what stands in a file's place --------------------------------------------------------------------------


def _instead(name: str, put: Callable[[Path], Any]) -> Harm:
    def harm(bundle: Path) -> None:
        (bundle / name).unlink()
        put(bundle / name)

    return harm


def _grown(name: str, size: int) -> Harm:
    return lambda bundle: os.truncate(bundle / name, size)  # type: ignore[func-returns-value]


def _places() -> list[NamedHarm]:
    things: dict[str, Callable[[Path], Any]] = {
        "a FIFO": os.mkfifo,
        "a folder": os.mkdir,
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to nothing": lambda path: path.symlink_to("/no/such/file"),
        "a link out of the bundle": lambda path: path.symlink_to("/etc/passwd"),
        "a link to a file of the system": lambda path: path.symlink_to("/proc/self/environ"),
    }
    names = ("manifest.json", "entities.npy", "entities.tsv", "known.npz", MODEL, TOKENIZER)
    found = [(f"{thing} as {name}", _instead(name, put), False) for name in names for thing, put in things.items()]
    return [
        *found,
        ("a manifest of a terabyte", _grown("manifest.json", 1 << 40), False),
        ("vectors of a terabyte", _grown("entities.npy", 1 << 40), False),
    ]


# ---- tables -------------------------------------------------------------------------------------------------


def npy(shape: str, descr: str = "'|i1'", order: str = "False", data: bytes = b"") -> bytes:
    """A `.npy` file with any header."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': ({shape}), }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pickle-ran",)


def _pickled() -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.array([_Bomb()], dtype=object), allow_pickle=True)
    return file.getvalue()


def _tables() -> list[NamedHarm]:
    shapes = ("-12, 16", f"{2**62}, 16", f"{2**64}, 0", "0, " * 40, "9" * 3000, "12 16", "12, 16, 1", "")
    arrays = {f"vectors of shape ({shape[:20]})": npy(shape) for shape in shapes}
    arrays |= {
        "pickled vectors": _pickled(),
        "structured vectors": npy("12,", "[('a', '<f4', (16,))]", data=bytes(768)),
        "vectors of objects": npy("12, 16", "'|O'", data=bytes(1536)),
        "big-endian vectors": npy("12, 16", "'>i4'", data=bytes(768)),
        "an expression in a header": npy("12, 16", "__import__('os')"),
        "a header longer than the file": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        "vectors with a NUL in the header": npy("12, 16\0"),
    }
    found = [(name, sealed_file("entities.npy", lambda _, data=data: data), False) for name, data in arrays.items()]
    scales = {"no scale": np.zeros(12), "NaN scales": np.full(12, np.nan), "negative scales": -np.ones(12)}
    scales |= {
        "endless scales": np.full(12, np.inf),
        "the largest scales": np.full(12, 3e38),
        "the least": np.full(12, 1e-45),
    }
    for name, values in scales.items():
        data = npy("12,", "'<f4'", data=values.astype("<f4").tobytes())
        found.append((name, sealed_file("scales.npy", lambda _, data=data: data), name.startswith("the ")))
    rows = {
        "entities of NULs": lambda data: bytes(len(data)),
        "entities of tabs": lambda data: b"\t" * 1_000_000 + b"\n",
        "a million empty lines": lambda data: b"\n" * 1_000_000,
        "entities that are no UTF-8": lambda data: data.replace(b"a", b"\xff"),
        "entities with surrogates": lambda data: data.replace(b"aspirin", b"\xed\xa0\x80"),
        "an entity twice": lambda data: data + data,
    }
    found += [(name, sealed_file("entities.tsv", change), False) for name, change in rows.items()]
    name = "a name of 8 MB"
    found.append(
        (
            name,
            sealed_file(
                "entities.tsv", lambda data: data.replace(b"insulin\tinsulin", b"insulin\t" + b"n" * (8 << 20))
            ),
            True,
        )
    )
    return found


# ---- zips ---------------------------------------------------------------------------------------------------


def _npz(make: Callable[[bytes], bytes]) -> Harm:
    return sealed_file("known.npz", make)


def _rezipped(data: bytes, **how: Any) -> bytes:
    """The arrays of an `.npz` packed in another way. how: compression, more members, names."""
    import io

    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(target, "w", how.get("compression", zipfile.ZIP_STORED)) as archive:
        for name in source.namelist():
            archive.writestr(how.get("prefix", "") + name, source.read(name))
        for number in range(how.get("more", 0)):
            archive.writestr(f"more-{number}.npy", b"")
        if how.get("bomb"):
            archive.writestr("bomb.npy", bytes(64 << 20))
    return target.getvalue()


def _directory(offset: int, form: str, *values: int) -> Callable[[bytes], bytes]:
    """A zip whose first directory entry says something else at an offset."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(form, changed, data.index(b"PK\x01\x02") + offset, *values)
        return bytes(changed)

    return change


def _ending(offset: int, form: str, *values: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(form, changed, data.rindex(b"PK\x05\x06") + offset, *values)
        return bytes(changed)

    return change


def _packed(change: Callable[[bytes], bytes]) -> Harm:
    """The whole bundle as a zip, changed."""

    def harm(bundle: Path) -> Path:
        from pmd.serving.archive import pack

        pack(bundle, bundle / "bundle.zip")
        (bundle / "bundle.zip").write_bytes(change((bundle / "bundle.zip").read_bytes()))
        return bundle / "bundle.zip"

    return harm


def _zips() -> list[NamedHarm]:
    lies: dict[str, Callable[[bytes], bytes]] = {
        "sizes of four gigabytes": _directory(20, "<LL", 2**32 - 2, 2**32 - 2),
        "zip64 sizes without a record": _directory(20, "<LL", 2**32 - 1, 2**32 - 1),
        "an offset past the end": _directory(42, "<L", 2**31),
        "a name of 65,535 bytes": _directory(28, "<H", 65535),
        "an extra field of 65,535 bytes": _directory(30, "<H", 65535),
        "a member compressed with bzip2": _directory(10, "<H", 12),
        "an encrypted member": _directory(8, "<H", 1),
        "65,535 members": _ending(8, "<HH", 65535, 65535),
        "a directory of four gigabytes": _ending(12, "<LL", 2**32 - 2, 0),
        "a directory before the file": _ending(16, "<L", 2**32 - 2),
        "no directory": lambda data: data[: data.rindex(b"PK\x05\x06")],
        "nothing but an end": lambda data: b"PK\x05\x06" + bytes(18),
        "a comment of 65,535 bytes": _ending(20, "<H", 65535),
        "half of it": lambda data: data[: len(data) // 2],
    }
    harmless = {"65,535 members", "a comment of 65,535 bytes"}  # readers go by the directory's size
    found = [(f"npz: {name}", _npz(change), name in harmless) for name, change in lies.items()]
    packs: dict[str, dict[str, Any]] = {
        "compressed": {"compression": zipfile.ZIP_DEFLATED},
        "a bomb of 64 MB beside": {"compression": zipfile.ZIP_DEFLATED, "bomb": True},
        "100,000 members more": {"more": 100_000},
        "climbing names": {"prefix": "../"},
    }
    for name, how in packs.items():
        found.append((f"npz: {name}", _npz(partial(_rezipped, **how)), name == "100,000 members more"))
    last = {
        "a directory of four gigabytes",
        "a directory before the file",
        "no directory",
        "half of it",
        "nothing but an end",
    }
    return found + [(f"zip: {name}", _packed(lies[name]), False) for name in sorted(last)]


def _run(ground: Ground) -> Tally:
    tally = Tally()
    run_cases("hostile_bundles:hostile_case", ground, tally)
    return tally


WHAT = (
    "Bundles made to harm, sealed so that only content can be refused: manifests, links and devices, arrays, zips, "
    "graphs, tokenizers; refused in one line or answering, within 3 GiB of address space and a minute each"
)
COUNT = len(all_harms())
ATTACKS = (Attack("hostile-bundles", "hostile files", WHAT, _run, COUNT // 3, COUNT),)
