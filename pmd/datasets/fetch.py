"""A named dataset into the cache: every file fetched and verified, then the folder put there whole."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pmd.datasets import layouts
from pmd.datasets.catalogue import Entry, Source
from pmd.datasets.damage import FACTS
from pmd.datasets.download import SECONDS, Tick, download
from pmd.datasets.places import fetched_root
from pmd.errors import DatasetError, DownloadError
from pmd.serving.storage import atomic_folder, explained, make_folders, sha256_of

try:
    import fcntl
except ImportError:  # Windows: two that fetch the same are not noticed there
    fcntl = None  # type: ignore[assignment]

SCHEMA = "pmd-data-source/1"
MEMBER_BYTES = 1 << 32  # more than any member of an archive may unpack to


def fetch(
    entry: Entry, *, trust_first: bool = False, again: bool = False, seconds: float = SECONDS, tick: Tick
) -> Path:
    """The cache's folder of a dataset, fetched unless it is there; `again` replaces it.

    trust_first: take files whose sha256 is not known as they come, and note their hashes: fetching again then asks
    for the same. Raises DatasetError without it where a hash is not known, DownloadError if a file cannot be had or
    another process fetches the same, StorageError if the cache cannot be written.
    """
    folder, waiting = fetched_root() / entry.name, _waiting(entry.name)
    if folder.is_dir() and not again:
        return folder
    noted = _noted_hashes(folder)
    unknown = [address for address in entry.unverified if address not in noted]
    if unknown and not trust_first:
        raise DatasetError(
            f"no sha256 is known beforehand of {', '.join(unknown)}; to take what comes and hold later fetches "
            f"to it, give --trust-first-download"
        )
    with _alone(waiting, entry.name):
        files = []
        for source in entry.sources:
            partial = waiting / hashlib.sha256(source.address.encode()).hexdigest()[:16]
            sha256 = source.sha256 or noted.get(source.address)
            found = download(source.address, partial, sha256=sha256, size=source.size, seconds=seconds, tick=tick)
            files.append((source, partial, found))
        with atomic_folder(folder, replace=True) as made:
            for source, partial, _ in files:
                _keep(source, partial, made)
            _write_facts(entry, {source.address: found for source, _, found in files}, made)
            _check_counts(entry, made)
        shutil.rmtree(waiting, ignore_errors=True)
    return folder


def tidy(name: str) -> None:
    """Remove what a fetch that was killed at its very end left of a dataset that is in the cache."""
    if (fetched_root() / name).is_dir() and _waiting(name).is_dir():
        with suppress(DownloadError), _alone(_waiting(name), name):  # not that of one that fetches it again now
            shutil.rmtree(_waiting(name), ignore_errors=True)


def _waiting(name: str) -> Path:
    """Where the files of a dataset are until all of them are there."""
    return fetched_root() / ".partial" / name


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Make a folder and hold it: two processes that append to one file would spoil it. Raises DownloadError."""
    with explained(folder):
        make_folders(folder)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise DownloadError(f"another process is fetching {name}; wait until it has ended") from error
    try:
        yield
    finally:
        os.close(handle)


def _keep(source: Source, partial: Path, folder: Path) -> None:
    """Put the file, or the named members of the archive, into the folder."""
    if "" in source.keep:
        shutil.copyfile(partial, folder / source.keep[""])
        return
    try:
        with zipfile.ZipFile(partial) as archive:
            for member, name in source.keep.items():
                if archive.getinfo(member).file_size > MEMBER_BYTES:
                    raise DownloadError(f"{source.address}: {member} unpacks to more than {MEMBER_BYTES:,} bytes")
                with archive.open(member) as packed, open(folder / name, "wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise DownloadError(f"{source.address} is no zip archive with {', '.join(source.keep)}: {error}") from error


def _write_facts(entry: Entry, hashes: dict[str, str], folder: Path) -> None:
    """dataset.json: where the files are from and the hashes they have, which `pmd-data check` compares."""
    facts = {
        "schema": SCHEMA,
        "name": entry.name,
        "licence": entry.licence,
        "sources": hashes,
        "sha256": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _check_counts(entry: Entry, folder: Path) -> None:
    """Raise DownloadError if the dataset reads as another size than the catalogue says."""
    graph = layouts.read(folder).graph()
    found = {"entities": graph.num_entities, "relations": graph.num_relations}
    found |= {split: len(graph.split(split)) for split in ("train", "valid", "test")}
    for what, count in entry.counts.items():
        if found.get(what) != count:
            raise DownloadError(f"{entry.name} has {found.get(what)} {what}, the catalogue says {count}")


def _noted_hashes(folder: Path) -> dict[str, str]:
    """sha256 by address as noted when the dataset was fetched before."""
    try:
        noted = json.loads((folder / FACTS).read_text(encoding="utf-8"))["sources"]
        return {str(address): str(found) for address, found in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
