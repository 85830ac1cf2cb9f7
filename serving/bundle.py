"""A bundle on disk: the only owner of its file names, its reader, and the steps that write one.

A bundle is a folder, or the same as one uncompressed zip that is read in place. Reading checks everything that
answering relies on, and refuses with one line. To write a bundle, put the towers into a folder, then call
`write_tables`, then `seal`, which adds the manifest; the folder is a bundle from then on, and `archive.pack` makes
a zip of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from pmd.serving.archive import FolderSource, Source, ZipSource, npy_array, npz_arrays
from pmd.serving.checked import CheckedSource
from pmd.serving.errors import BundleError, SignatureError
from pmd.serving.known import KnownAnswers
from pmd.serving.manifest import DIGEST, Manifest, check_manifest, digest_of, parse_manifest, templates_of
from pmd.serving.manifest import MOST_BYTES as MOST_MANIFEST_BYTES
from pmd.serving.neighbours import NeighbourGraph
from pmd.serving.onnxfile import check_model
from pmd.serving.platforms import check_platform
from pmd.serving.rows import EntityRow, RelationRow, TextRows, format_rows
from pmd.serving.signing import MOST_BYTES, Signature, check_signature, read_public_keys, read_signatures
from pmd.serving.storage import sha256_of, write_atomic
from pmd.serving.tables import Tables
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer, TokenizerError
from pmd.serving.vectors import VectorTable
from pmd.serving.verified import VerifiedSource, verified_bytes

MANIFEST, SIGNATURE, CARD = "manifest.json", "manifest.sig", "README.md"
ENTITIES, RELATIONS = "entities.tsv", "relations.tsv"
VECTORS, SCALES = "entities.npy", "scales.npy"
KNOWN, GRAPH = "known.npz", "graph.npz"
QUERY, ENTITY = "query", "entity"
"""The folders of the two towers."""
MODEL, TOKENIZER, CONFIG = "onnx/model.onnx", "tokenizer.json", "config.json"
"""Files of a tower, below its folder."""
TABLE_FILES = (ENTITIES, RELATIONS, VECTORS, SCALES, KNOWN, GRAPH)
REQUIRED = (ENTITIES, RELATIONS, VECTORS, KNOWN, GRAPH, f"{QUERY}/{MODEL}", f"{QUERY}/{TOKENIZER}")
KNOWN_ARRAYS = ("keys", "offsets", "answers", "splits")
GRAPH_ARRAYS = ("offsets", "targets")
Verify: TypeAlias = bool | Literal["used"]
"""Which files are held to the manifest's sha256: all at once, each that is used when it is first read, or none."""


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle; its arrays stay memory-mapped.

    Files of an open bundle must not be written to. Replacing them whole, as `Scorer.save` does, is safe: the
    mapping keeps the old ones.
    """

    path: Path
    manifest: Manifest
    tables: Tables
    source: Source

    @classmethod
    def open(
        cls, path: str | Path, *, verify: Verify = "used", trusted_keys: Sequence[str | Path] | None = None
    ) -> Bundle:
        """Read a folder or zip.

        verify: "used" checks the sha256 of what answers rest on, each file before it is first used (an entity tower
        when it is opened); True that of every file now, and that vectors are of unit length; False sizes alone.
        trusted_keys: PEM files of Ed25519 public keys, one of which must have signed the manifest. Every file is
        then checked by its sha256 and used from the copy that was checked, in memory rather than mapped.
        Raises BundleError, in one line, if anything is missing, damaged, unsafe or does not fit together;
        SignatureError for what is not signed by a trusted key, PlatformError on a big-endian or 32-bit machine.
        """
        check_platform()
        path, keys = Path(path), None if trusted_keys is None else read_public_keys(trusted_keys)
        source = _source(path)
        data = _manifest_bytes(source, path)
        if keys is not None:  # before anything else is read, the manifest's JSON included
            check_signature(data, _signatures(source, path), keys, f"{path}: {MANIFEST}")
        manifest = parse_manifest(data, f"{path}: {MANIFEST}")
        checked: VerifiedSource | CheckedSource | None = None
        if keys is not None:
            source = checked = VerifiedSource(source, manifest["files"], {MANIFEST: data}, str(path))
        elif verify:
            source = checked = CheckedSource(source, manifest["files"], str(path))
        bundle = cls(path, manifest, _read_tables(source, manifest, path), source)
        if checked is not None and (verify is True or keys is not None):
            for name in bundle.files():
                checked.check(name)
            _check_lengths(bundle.tables, path)
        return bundle

    @property
    def templates(self) -> Templates:
        """How texts are worded."""
        return templates_of(self.manifest, f"{self.path}: {MANIFEST}")

    def manifest_bytes(self) -> bytes:
        """The manifest as it stands in the bundle, which its journal knows it by."""
        return self.source.mapped(MANIFEST).tobytes()

    def files(self) -> list[str]:
        """Every file of the manifest that is there: all of them, or all but a left-out entity tower."""
        return _present(self.source, self.manifest)

    def has_tower(self, tower: str) -> bool:
        """Whether QUERY or ENTITY can be opened."""
        return f"{tower}/{MODEL}" in self.files()

    def model(self, tower: str) -> bytes | Path:
        """A tower's ONNX graph: a path in a folder, its bytes in a zip.

        Raises BundleError for a graph that is none, or may do more than `onnxfile` allows.
        """
        name = f"{tower}/{MODEL}"
        data = self.source.mapped(name)
        try:
            check_model(data)
        except BundleError as error:
            raise BundleError(f"{self.path}: {name}: {error}") from error
        path = self.source.path(name)
        return data.tobytes() if path is None else path

    def tokenizer(self, tower: str) -> TextTokenizer:
        """A tower's tokenizer. Raises BundleError if the file is not one."""
        name = f"{tower}/{TOKENIZER}"
        try:
            text = self.source.mapped(name).tobytes().decode("utf-8")
            return TextTokenizer(text, self.manifest["max_tokens"])
        except (TokenizerError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.path}: {name}: {error}") from error

    def read_verified(self, name: str) -> bytes:
        """A file's bytes. Raises BundleError if they are not those of the manifest's sha256."""
        if isinstance(self.source, VerifiedSource):
            return self.source.mapped(name).tobytes()
        return verified_bytes(self.source, name, self.manifest["files"], str(self.path))


def write_tables(folder: Path, tables: Tables) -> None:
    """Write the graph's six files into `folder` (five for float32 vectors).

    Raises BundleError for bad tables, PlatformError where numpy would write them big-endian.
    """
    check_platform()
    tables.check(str(folder))
    (folder / ENTITIES).write_bytes(format_rows(tables.entities, ENTITIES))
    (folder / RELATIONS).write_bytes(format_rows(tables.relations, RELATIONS))
    np.save(folder / VECTORS, tables.vectors.columns.T)  # a dimension after the other: see pmd.serving.vectors
    if tables.vectors.scales is not None:
        np.save(folder / SCALES, tables.vectors.scales)
    np.savez(folder / KNOWN, **{name: getattr(tables.known, name) for name in KNOWN_ARRAYS})
    np.savez(folder / GRAPH, **{name: getattr(tables.graph, name) for name in GRAPH_ARRAYS})


def seal(folder: Path, facts: Manifest) -> Manifest:
    """Write the manifest: `facts` plus size and sha256 of every file below `folder`. Returns it.

    A signature of an earlier manifest goes. Raises BundleError if a required fact or file is missing.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }
    manifest = {key: value for key, value in facts.items() if key != DIGEST} | {"files": files}
    check_manifest(manifest, str(folder / MANIFEST))
    _check_complete(manifest, folder)
    manifest[DIGEST] = digest_of(manifest)
    text = json.dumps(manifest, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(folder / MANIFEST, (text + "\n").encode("utf-8"))
    return manifest


def _source(path: Path) -> Source:
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        return ZipSource.open(path)
    raise BundleError(f"no bundle at {path}; expected a folder or an uncompressed .zip made by pmd-export")


def _manifest_bytes(source: Source, path: Path) -> bytes:
    size = source.size(MANIFEST)
    if size is None:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST} at its top level")
    if size > MOST_MANIFEST_BYTES:
        raise BundleError(f"{path}: {MANIFEST} has {size:,} bytes, expected at most {MOST_MANIFEST_BYTES:,}")
    return source.mapped(MANIFEST).tobytes()


def _signatures(source: Source, path: Path) -> list[Signature]:
    if source.size(SIGNATURE) is None:
        raise SignatureError(f"{path} is not signed: it has no {SIGNATURE}; get it from who signs it, or sign it")
    return read_signatures(source.mapped(SIGNATURE)[: MOST_BYTES + 1].tobytes(), f"{path}: {SIGNATURE}")


def _check_complete(manifest: Manifest, path: Path) -> None:
    """Raise BundleError unless the manifest lists every file that answering needs."""
    required = [*REQUIRED, SCALES] if manifest["vectors"]["dtype"] == "int8" else REQUIRED
    absent = [name for name in required if name not in manifest["files"]]
    if absent:
        raise BundleError(f"{path}: the manifest lists no {', '.join(absent)}; export the bundle again")


def _present(source: Source, manifest: Manifest) -> list[str]:
    """The files of the manifest that are there; the entity tower may be left out, but only as a whole."""
    names = list(manifest["files"])
    tower = [name for name in names if name.startswith(f"{ENTITY}/")]
    if all(source.size(name) is None for name in tower):
        return [name for name in names if name not in tower]
    return names


def _check_sizes(source: Source, manifest: Manifest, path: Path) -> None:
    for name in _present(source, manifest):
        expected, found = manifest["files"][name]["bytes"], source.size(name)
        if found is None:
            raise BundleError(f"{path}: {name[:60]} is missing; copy or export the bundle again")
        if found != expected:
            raise BundleError(
                f"{path}: {name} has {found} bytes, the manifest says {expected}; copy the bundle again"
            )


def _read_tables(source: Source, manifest: Manifest, path: Path) -> Tables:
    _check_complete(manifest, path)
    _check_sizes(source, manifest, path)

    def arrays(name: str, *parts: str) -> list[Any]:
        return npz_arrays(source.mapped(name), f"{path}: {name}", *parts)

    entities = TextRows(source.mapped(ENTITIES), EntityRow, f"{path}: {ENTITIES}")
    relations = TextRows(source.mapped(RELATIONS), RelationRow, f"{path}: {RELATIONS}")
    tables = Tables(
        entities=entities,
        relations=relations,
        vectors=_read_vectors(source, manifest, path),
        known=KnownAnswers(len(entities), len(relations), *arrays(KNOWN, *KNOWN_ARRAYS)),
        graph=NeighbourGraph(*arrays(GRAPH, *GRAPH_ARRAYS)),
    )
    tables.check(str(path))
    if tables.vectors.width != manifest["width"]:
        raise BundleError(
            f"{path}: {VECTORS} is {tables.vectors.width} wide, the manifest says {manifest['width']}"
        )
    return tables


def _check_lengths(tables: Tables, path: Path) -> None:
    longer = tables.vectors.longer()
    if len(longer):
        raise BundleError(
            f"{path}: {VECTORS}: the vector of {tables.entities[longer[0]].id!r} is longer than 1 "
            f"(and those of {len(longer) - 1} more); scores are cosines of unit vectors"
        )


def _read_vectors(source: Source, manifest: Manifest, path: Path) -> VectorTable:
    values = npy_array(source.mapped(VECTORS), f"{path}: {VECTORS}")
    if manifest["vectors"]["dtype"] == "float32":
        return VectorTable(values)
    return VectorTable(values, npy_array(source.mapped(SCALES), f"{path}: {SCALES}"))
