"""`manifest.json`: what a bundle says about itself, checked before anything else is read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from pmd.serving.archive import is_safe_name
from pmd.serving.errors import BundleError, PmdError
from pmd.serving.texts import Templates

Manifest: TypeAlias = dict[str, Any]

SCHEMA_NAME, SCHEMA_VERSION = "pmd-bundle", 1
SCHEMA = f"{SCHEMA_NAME}/{SCHEMA_VERSION}"
VECTOR_TYPES = ("int8", "float32")
FIELDS: dict[str, tuple[type, ...]] = {
    "schema": (str,),
    "dataset": (str,),
    "method": (str,),
    "stage": (str,),
    "grade": (int,),
    "precision": (str,),
    "encoder": (str,),
    "layers": (int,),
    "width": (int,),
    "max_tokens": (int,),
    "parameters": (int,),
    "seed": (int,),
    "templates": (dict,),
    "rerank": (dict, type(None)),
    "vectors": (dict,),
    "parity": (dict,),
    "metrics": (dict,),
    "fused": (dict,),
    "source": (dict,),
    "files": (dict,),
    "created_by": (str,),
}
"""Every required key and the JSON types it may have. Other keys are kept and not looked at."""
MIN_TOKENS = 5  # [CLS], a head token, [SEP], a relation token, [SEP]
MOST_TOKENS = 1 << 16
MOST_BYTES = 16 << 20  # of a manifest; one of a million entities has 10 KiB
MOST_NEIGHBOURS, MOST_CHARACTERS = 1_000_000, 10_000  # of a text template
MOST_WEIGHT = 1e6  # of re-ranking; what it is added to is a cosine
DIGEST = "digest"
"""The optional key that holds the sha256 of all the others."""
JSON_TYPES = {str: "text", int: "a whole number", dict: "an object", type(None): "null"}


def parse_manifest(data: bytes, what: str) -> Manifest:
    """The checked manifest of JSON bytes. Raises BundleError for bad JSON and all that `check_manifest` refuses."""
    try:
        manifest = json.loads(
            data.decode("utf-8"), parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_distinct
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{what} is not a JSON object")
    check_manifest(manifest, what)
    if DIGEST in manifest and manifest[DIGEST] != digest_of(manifest):
        raise BundleError(f"{what} is not what its own {DIGEST} says; it was changed or damaged")
    return manifest


def digest_of(manifest: Manifest) -> str:
    """The hex sha256 of a manifest without its digest, as JSON with sorted keys, in ASCII and without spaces."""
    rest = {key: value for key, value in manifest.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_manifest(manifest: Manifest, what: str) -> None:
    """Raise BundleError unless the schema is ours and every required key has a value of its type and range."""
    _check_schema(manifest.get("schema"), what)
    for key, types in FIELDS.items():
        if key not in manifest:
            raise BundleError(f"{what} has no {key!r}; export the bundle again")
        if not _is_a(manifest[key], types):
            expected = " or ".join(JSON_TYPES[kind] for kind in types)
            raise BundleError(f"{what}: {key!r} must be {expected}, found {str(manifest[key])[:60]!r}")
    for key, least in {"width": 1, "layers": 1, "max_tokens": MIN_TOKENS}.items():
        if manifest[key] < least:
            raise BundleError(f"{what}: {key!r} must be at least {least}, found {manifest[key]}")
    if manifest["max_tokens"] > MOST_TOKENS:
        raise BundleError(f"{what}: 'max_tokens' must be at most {MOST_TOKENS}")
    _check_vectors(manifest["vectors"], what)
    _check_rerank(manifest["rerank"], what)
    _check_changes(manifest.get("changes", {}), what)
    _check_files(manifest["files"], what)
    templates_of(manifest, what)


def templates_of(manifest: Manifest, what: str) -> Templates:
    """The text templates of a manifest. Raises BundleError if one is unknown or malformed."""
    values, known = manifest["templates"], Templates().as_dict()
    for key, value in values.items():
        if key not in known:
            raise BundleError(
                f"{what}: unknown text template {key[:60]!r}; upgrade pmd-kgc or export the bundle again"
            )
        if not _is_a(value, (type(known[key]),)):
            raise BundleError(f"{what}: text template {key!r} must be {JSON_TYPES[type(known[key])]}")
        if len(value) > MOST_CHARACTERS if isinstance(value, str) else abs(value) > MOST_NEIGHBOURS:
            raise BundleError(f"{what}: text template {key!r} is too large; export the bundle again")
    try:
        return Templates(**values)
    except PmdError as error:
        raise BundleError(f"{what}: {error}") from error


def rerank_of(manifest: Manifest) -> tuple[int, float]:
    """Hops and weight of neighbour re-ranking; 0 hops without."""
    settings = manifest["rerank"]
    return (int(settings["hops"]), float(settings["weight"])) if settings else (0, 0.0)


def _check_schema(found: object, what: str) -> None:
    if found == SCHEMA:
        return
    name, _, version = str(found).partition("/")
    if name == SCHEMA_NAME and version.isdecimal() and len(version) < 10 and int(version) > SCHEMA_VERSION:
        raise BundleError(
            f"{what} is of schema {found}, newer than the {SCHEMA} this version reads; upgrade pmd-kgc"
        )
    raise BundleError(f"{what} is of schema {str(found)[:60]!r}, expected {SCHEMA!r}")


def _check_vectors(vectors: dict[str, Any], what: str) -> None:
    if vectors.get("dtype") not in VECTOR_TYPES:
        found = str(vectors.get("dtype"))[:60]
        raise BundleError(f"{what}: vectors.dtype must be one of {', '.join(VECTOR_TYPES)}, found {found!r}")


def _check_rerank(rerank: dict[str, Any] | None, what: str) -> None:
    if rerank is None:
        return
    if not _is_a(rerank.get("hops"), (int,)) or rerank["hops"] < 1:
        raise BundleError(
            f"{what}: rerank.hops must be a whole number from 1, found {str(rerank.get('hops'))[:60]!r}"
        )
    if not _is_a(rerank.get("weight"), (int, float)):
        raise BundleError(f"{what}: rerank.weight must be a number, found {str(rerank.get('weight'))[:60]!r}")
    if not abs(rerank["weight"]) <= MOST_WEIGHT:
        raise BundleError(f"{what}: rerank.weight must be between {-MOST_WEIGHT:g} and {MOST_WEIGHT:g}")


def _check_changes(changes: object, what: str) -> None:
    """`changes` is optional: how many entities were added, removed and updated since the export."""
    names = ("added", "removed", "updated")
    if not isinstance(changes, dict) or not all(_is_a(changes.get(key, 0), (int,)) for key in names):
        raise BundleError(
            f"{what}: changes must hold the numbers 'added', 'removed' and 'updated', found {str(changes)[:60]!r}"
        )


def _check_files(files: dict[str, Any], what: str) -> None:
    for name, entry in files.items():
        if not is_safe_name(name):
            raise BundleError(f"{what}: file name {name[:60]!r} is absolute or climbs out of the bundle")
        if (
            not isinstance(entry, dict)
            or not _is_a(entry.get("bytes"), (int,))
            or not _is_a(entry.get("sha256"), (str,))
        ):
            raise BundleError(f"{what}: files[{name[:60]!r}] must hold 'bytes' and 'sha256'")


def _is_a(value: object, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)  # JSON's true is an int to Python


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(text: str) -> float:
    """A JSON number with a point or exponent. Raises ValueError where it is beyond what a float holds."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:60]} is larger than any number")
    return value


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a key is there twice, which readers understand differently."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return value
