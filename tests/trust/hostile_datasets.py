"""Datasets, recipes and weights made by hand to harm who reads them."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.case_child import Case
from tests.trust.case_pool import TRAINING_BYTES, run_cases
from tests.trust.fuzz_engine import settled
from tests.trust.harms import Harm, NamedHarm, harmed

ENTITIES, RELATIONS = "a\ta\t\nb\tb\t\n", "r\tr\n"
TRIPLE = "a\tr\tb\n"
RECIPE = {"dataset": "umls", "grades": [3], "mask_rates": [0.1], "epochs": 1, "batch_size": 8, "lr": 0.1}


def dataset_case(folder: Path) -> Case:
    """Cases of dataset folders and files: refused in one line, or read; none hangs or takes memory without end."""
    from pmd.datasets import layouts
    from pmd.errors import DatasetError

    def read(path: Path) -> str:
        graph = layouts.read(path).graph()
        graph.known()
        return "read"

    def good(place: Path) -> None:
        place.mkdir()
        for name, text in {"entities": ENTITIES, "relations": RELATIONS, "train": TRIPLE}.items():
            (place / f"{name}.tsv").write_text(text)

    return harmed(folder, datasets(), good, lambda path: settled(lambda: read(path), DatasetError))


def recipe_case(folder: Path) -> Case:
    """Cases of recipe files."""
    from pmd.errors import RecipeError
    from pmd.recipe import load_recipe

    def read(path: Path) -> str:
        load_recipe(str(path / "recipe.yaml"), {})
        return "read"

    return harmed(folder, recipes(), Path.mkdir, lambda path: settled(lambda: read(path), RecipeError))


def weights_case(folder: Path) -> Case:
    """Cases of grades, checkpoints and encoders: what is not what it says is refused."""
    from pmd.checkpoint import load_checkpoint
    from pmd.encoder import load_encoder, resolve_encoder
    from pmd.errors import PmdError
    from pmd.grade import load_grade
    from tests.tiny_encoder import write_encoder
    from tests.tiny_run import write_run

    grade = write_run(folder / "given", stages={"grade-2": 2}) / "grade-2"
    encoder = write_encoder(folder / "encoder", layers=2)

    def good(place: Path) -> None:
        for name, source in {"grade": grade, "encoder": encoder}.items():
            shutil.copytree(source, place / name)

    def read(path: Path) -> str:
        changed = next(path.glob("changed-*")).name.removeprefix("changed-")
        if changed == "checkpoint":
            load_checkpoint(path / "grade/model.safetensors", "teacher")
        elif changed == "grade":
            load_grade(path / "grade")
        else:
            load_encoder(resolve_encoder(str(path / "encoder")), dropout=0.1, temperature=0.05)
        return "read"

    return harmed(folder, weights(), good, lambda path: settled(lambda: read(path), PmdError))


def _put(name: str, data: Callable[[], bytes], *, instead: str = "", alone: bool = False) -> Harm:
    """A file more, in place of another, or the only one that is read."""

    def harm(place: Path) -> Path | None:
        if instead:
            (place / instead).unlink()
        (place / name).write_bytes(data())
        return place / name if alone else None

    return harm


def _zeros(opener: Callable[..., Any], path: Path, mib: int, unit: bytes = bytes(1 << 20)) -> None:
    with opener(path, "wb") as file:
        for _ in range(mib):
            file.write(unit)


def _bomb(name: str, opener: Callable[..., Any], unit: bytes, mib: int) -> Harm:
    def harm(place: Path) -> None:
        (place / "train.tsv").unlink()
        _zeros(opener, place / name, mib, unit * ((1 << 20) // len(unit)))

    return harm


def _in_place(name: str, put: Callable[[Path], Any]) -> Harm:
    def harm(place: Path) -> None:
        (place / name).unlink()
        put(place / name)

    return harm


def _folder(files: dict[str, bytes]) -> Harm:
    """Another folder, of these files alone."""

    def harm(place: Path) -> None:
        for path in list(place.iterdir()):
            path.unlink()
        for name, data in files.items():
            (place / name).write_bytes(data)

    return harm


def _parquet(columns: dict[str, Callable[[], Any]]) -> Harm:
    def harm(place: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: make() for name, make in columns.items()})
        pq.write_table(table, place / "graph.parquet", compression="zstd")
        return place / "graph.parquet"

    return harm


def _repeated(text: str, times: int) -> Callable[[], Any]:
    def make() -> Any:
        import numpy as np
        import pyarrow as pa

        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array([text]))

    return make


def datasets() -> list[NamedHarm]:
    """Name, harm, and whether reading it is right as well."""
    ids = ("head", "relation", "tail")
    triples = TRIPLE.encode()
    simkgc = {"entities.json": b'[{"entity_id": "a", "entity": "a", "entity_desc": ""}]', "relations.json": b"{}"}
    found: list[NamedHarm] = [
        ("NULs in a split", _put("train.tsv", lambda: triples + bytes(1000)), False),
        ("NULs in ids", _put("train.tsv", lambda: b"a\0\tr\tb\n"), False),
        ("a line of 100 MB", _put("train.tsv", lambda: triples + b"x" * 100_000_000), False),
        ("a description of 100 MB", _put("entities.tsv", lambda: b"b\tb\t\na\ta\t" + b"x" * 100_000_000), True),
        ("10^6 columns of TSV", _put("train.tsv", lambda: b"a\t" * 1_000_000), False),
        ("10^6 columns of CSV", _put("graph.csv", lambda: b"a," * 1_000_000 + b"b\n", alone=True), False),
        ("no UTF-8", _put("train.tsv", lambda: triples + b"\xff\xfe\tr\tb\n"), False),
        ("UTF-16", _put("train.tsv", lambda: TRIPLE.encode("utf-16")), False),
        ("surrogates", _put("train.tsv", lambda: b"\xed\xa0\x80\tr\tb\n"), False),
        ("an empty split", _put("train.tsv", lambda: b""), False),
        ("a million empty lines", _put("train.tsv", lambda: triples + b"\n" * 1_000_000), True),
        ("old line ends alone", _put("train.tsv", lambda: b"a\tr\tb\r" * 100_000), True),
        ("a quote that never closes", _put("graph.csv", lambda: b'a,r,"b\n' * 100_000, alone=True), True),
    ]
    for suffix, opener in {".gz": gzip.open, ".xz": lzma.open}.items():
        name = f"train.tsv{suffix}"
        found += [
            (f"200 MB of NULs in {suffix}", _bomb(name, opener, bytes(1), 200), False),
            (f"10 MB of one triple in {suffix}", _bomb(name, opener, triples, 10), True),
            (f"no {suffix} at all", _put(name, lambda: b"plain", instead="train.tsv"), False),
            (f"half of a {suffix}", _put(name, lambda opener=opener: _half(opener), instead="train.tsv"), False),
        ]
    things: dict[str, Callable[[Path], Any]] = {
        "a FIFO": os.mkfifo,
        "a folder": os.mkdir,
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    }
    for name in ("entities.tsv", "train.tsv"):
        found += [(f"{thing} as {name}", _in_place(name, put), False) for thing, put in things.items()]
    jsons = {
        "deep JSON": b"[" * 1_000_000,
        "numbers of 5,000 digits": b'[{"head_id": ' + b"9" * 5000 + b"}]",
        "half a surrogate": b'[{"head_id": "\\ud800", "relation": "r", "tail_id": "a"}]',
        "no list": b'{"head_id": "a"}',
        "NaN": b"[NaN]",
    }
    found += [
        (f"SimKGC: {name}", _folder({**simkgc, "train.txt.json": data}), False) for name, data in jsons.items()
    ]
    turtle = {
        "100,000 brackets": b"<a> <b> " + b"[ <b> " * 100_000,
        "100,000 lists": b"<a> <b> " + b"( " * 100_000,
        "a prefix of itself": b"@prefix a: <a:> . a:a a:b a:" + b"c" * 1_000_000,
        "a string that never ends": b'<a> <b> """' + b"x" * 1_000_000,
        "a base that is none": b"@base <::::> . <a> <b> <c> .",
    }
    found += [
        (f"Turtle: {name}", _put("g.ttl", lambda data=data: data, alone=True), name.startswith("a base"))
        for name, data in turtle.items()
    ]
    line = b"<a:a> <a:b> <a:c> .\n"
    found.append(
        (
            "N-Triples: an IRI of 10 MB",
            _put("g.nt", lambda: line + b"<a:" + b"x" * 10_000_000 + b"> <a:b> <a:c> .\n", alone=True),
            True,
        )
    )
    found.append(
        (
            "N-Triples: a literal of escapes",
            _put("g.nt", lambda: line + b'<a:a> <a:b> "' + b"\\u0041" * 1_000_000 + b'" .\n', alone=True),
            True,
        )
    )
    few, many = 1000, 20_000_000
    return [
        *found,
        ("Parquet: 20,000,000 rows", _parquet({name: _repeated("a", many) for name in ids}), False),
        (
            "Parquet: a text of 8 MB a thousand times",
            _parquet({name: _repeated("a" * 8_000_000, few) for name in ids}),
            False,
        ),
        (
            "Parquet: nonsense",
            _put("g.parquet", lambda: b"PAR1" + bytes(1000) + b"\xff\xff\xff\x7fPAR1", alone=True),
            False,
        ),
    ]


def _half(opener: Callable[..., Any]) -> bytes:
    packed = (gzip if opener is gzip.open else lzma).compress(TRIPLE.encode() * 1000)
    return packed[: len(packed) // 2]


def recipes() -> list[NamedHarm]:
    """Name, harm, and whether loading it is right as well."""
    base = json.dumps(RECIPE)[:-1]
    laughs = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(12))
    texts = {
        "a billion laughs": "a0: &a0 [lol]\n" + laughs,
        "a billion laughs as grades": "a0: &a0 [lol]\n" + laughs + "grades: *a12\ntemplates: *a12\ndataset: *a12\n",
        "a list in itself": "dataset: umls\ngrades: &a [*a]\nmask_rates: *a\nepochs: 1\nbatch_size: 1\nlr: 1\n",
        "a mapping in itself": "&a {dataset: *a, stage_epochs: *a, grades: [1]}",
        "a Python object": base + ', "dataset": !!python/object/apply:os.mkdir [yaml-ran]}',
        "a Python name": base + ', "encoder": !!python/name:os.system }',
        "deep YAML": "a: " + "[" * 3_000,
        "deep YAML that is closed": "a: " + "[" * 3_000 + "]" * 3_000,
        "a number of 5,000 digits": base + ', "seed": ' + "9" * 5000 + "}",
        "numbers of base 60": base + ', "seed": ' + "59:" * 5000 + "59}",
        "10,000 keys": "".join(f"k{number}: 1\n" for number in range(10_000)),
        "NULs": "\0" * 1000,
        "two documents": base + "}\n---\n" + base + "}\n",
        "an unknown tag": base + ', "seed": !evil 1}',
        "a date": base + ', "encoder": 2026-11-27}',
        "an infinity": base + ', "lr": .inf}',
    }
    found = [(name, _put("recipe.yaml", lambda text=text: text.encode()), False) for name, text in texts.items()]
    return [*found, ("a FIFO", lambda place: os.mkfifo(place / "recipe.yaml"), False)]  # type: ignore[func-returns-value]


def _claims(what: str, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> Harm:
    """A safetensors file with any header in place of a grade's, a checkpoint's or an encoder's."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length

    def harm(place: Path) -> None:
        target = place / ("encoder" if what == "encoder" else "grade") / "model.safetensors"
        target.write_bytes(struct.pack("<Q", size) + text + data)
        (place / f"changed-{what}").touch()

    return harm


def _config(what: str, **changes: Any) -> Harm:
    """A config that says something else, with weights that are not sealed."""

    def harm(place: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = place / what
        config = json.loads((folder / "config.json").read_text())
        inner = config["encoder_config"] if what == "grade" else config
        inner.update(changes)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})
        (place / f"changed-{what}").touch()

    return harm


def _text(what: str, name: str, data: bytes) -> Harm:
    def harm(place: Path) -> None:
        (place / what / name).write_bytes(data)
        (place / f"changed-{what}").touch()

    return harm


def weights() -> list[NamedHarm]:
    """Name, harm, and whether loading it is right as well."""
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    headers: dict[str, tuple[bytes | dict[str, Any], bytes, int | None]] = {
        "a header of 2^63 bytes": (b"{}", b"", 2**63),
        "a header of 2^64 - 1 bytes": (b"{}", b"", 2**64 - 1),
        "a header of 90 MB": (b"{}", b"", 90 << 20),
        "overlapping tensors": ({"a": one, "b": one}, bytes(16), None),
        "a tensor past the end": ({"a": {**one, "data_offsets": [0, 2**60]}}, bytes(16), None),
        "offsets that fall": ({"a": {**one, "data_offsets": [16, 0]}}, bytes(16), None),
        "a shape of 2^62": ({"a": {**one, "shape": [2**62, 4]}}, bytes(16), None),
        "a shape that overflows": ({"a": {**one, "shape": [2**32, 2**32]}}, bytes(16), None),
        "negative sizes": ({"a": {**one, "shape": [-4]}}, bytes(16), None),
        "an unknown type": ({"a": {**one, "dtype": "EVIL"}}, bytes(16), None),
        "a type of another size": ({"a": {**one, "dtype": "F64"}}, bytes(16), None),
        "a tensor twice": (f'{{"a": {json.dumps(one)}, "a": {json.dumps(one)}}}'.encode(), bytes(16), None),
        "deep JSON": (b'{"a":' * 100_000, b"", None),
        "metadata of numbers": ({"__metadata__": {"schema": 1}, "a": one}, bytes(16), None),
        "no JSON": (b"\x80\x04pickle", b"", None),
    }
    found = [
        (f"{what}: {name}", _claims(what, *given), False)
        for what in ("grade", "checkpoint", "encoder")
        for name, given in headers.items()
    ]
    for what in ("grade", "encoder"):
        sizes = {
            "a width of 2^40": {"hidden_size": 2**40},
            "10^9 layers": {"num_hidden_layers": 10**9},
            "10^12 words": {"vocab_size": 10**12},
            "-1 heads": {"num_attention_heads": -1},
            "a number of 400 digits": {"hidden_size": 10**400},
            "code of its own": {
                "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
                "model_type": "evil",
            },
            "an unknown family": {"model_type": "evil"},
            "no family": {"model_type": None},
            "a size in words": {"hidden_size": "large"},
        }
        found += [(f"{what}: {name}", _config(what, **given), False) for name, given in sizes.items()]
        deep = b'{"a":' * 100_000
        found += [
            (f"{what}: deep JSON as {name}", _text(what, name, deep), False)
            for name in ("config.json", "tokenizer.json")
        ]
    return found


def _attack(name: str, what: str, count: int, memory: int) -> Attack:
    def run(ground: Ground) -> Tally:
        tally = Tally()
        run_cases(f"hostile_datasets:{name}_case", ground, tally, memory=memory)
        return tally

    label = {"dataset": "hostile-datasets", "recipe": "hostile-recipes", "weights": "hostile-weights"}[name]
    return Attack(label, "hostile files", what, run, count // 3, count)


READ = "refused in one line or read, within a minute each"
ATTACKS = (
    _attack(
        "dataset", f"Datasets made to harm: bombs, links, nesting; {READ}, 6 GiB", len(datasets()), TRAINING_BYTES
    ),
    _attack("recipe", f"Recipes made to harm: aliases, tags, nesting; {READ}", len(recipes()), TRAINING_BYTES),
    _attack(
        "weights",
        f"Grades, checkpoints and encoders with lying headers and configs; {READ}",
        len(weights()),
        TRAINING_BYTES,
    ),
)
