"""A flat folder as compressed files of at most 16 MiB, and back.

Half-precision weights shrink by a seventh when the compressor is told that numbers are two bytes wide: the byte
with sign and exponent repeats, the other does not, and runs to look for there are none. Each part is an .xz file of
its own, so that parts are made side by side and travel in any order.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pmd.benchmarks.gpu.errors import PartsError
from pmd.serving.cores import default_threads
from pmd.serving.storage import atomic_folder, sha256_of, write_atomic

SCHEMA = "pmd-parts/1"
PART_BYTES = 16 * 2**20  # what a part may weigh
SLACK_BYTES = 64 * 2**10  # what .xz may add to bytes that it cannot shrink
# Literals by the parity of their place (lp), hardly any search for repeats: MiniLM's fp16 weights shrink to 0.86 at
# 7 MB/s a core; the defaults reach 0.91 at 2 MB/s.
FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 0, "lc": 0, "lp": 1, "pb": 1, "mode": lzma.MODE_FAST}
    | {"mf": lzma.MF_HC3, "nice_len": 2, "depth": 1, "dict_size": 4096}
]


def write_parts(source: Path, out: Path, name: str, *, part_bytes: int = PART_BYTES) -> dict[str, Any]:
    """Write the files of folder `source` to OUT/NAME.tar.xz.00, .01, …; returns what `read_parts` needs to know.

    Every part has at most `part_bytes`. Raises PartsError if `source` holds a folder.
    """
    data = _tar(source)
    step = max(1, part_bytes - min(SLACK_BYTES, part_bytes // 2))
    chunks = [data[start : start + step] for start in range(0, len(data), step)]
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(default_threads()) as pool:  # lzma lets go of the interpreter lock
        packed = list(pool.map(_compress, chunks))
    parts = []
    for number, content in enumerate(packed):
        file = f"{name}.tar.xz.{number:02d}"
        write_atomic(out / file, content)
        parts.append({"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    return {"schema": SCHEMA, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "parts": parts}


def check_parts(manifest: dict[str, Any], folders: Sequence[Path]) -> list[Path]:
    """Where each part lies, in order. Raises PartsError naming a part that is missing or damaged."""
    if manifest.get("schema") != SCHEMA:
        raise PartsError(f"parts of schema {manifest.get('schema')!r}; this version reads {SCHEMA!r}")
    return [_find(part, folders) for part in manifest["parts"]]


def read_parts(manifest: dict[str, Any], folders: Sequence[Path], target: Path) -> None:
    """Put the folder together again as `target`, whole or not at all, from parts that lie in any of `folders`.

    Raises PartsError if a part is missing or damaged.
    """
    try:
        data = b"".join(lzma.decompress(path.read_bytes()) for path in check_parts(manifest, folders))
    except lzma.LZMAError as error:
        raise PartsError(f"a part of {target.name} cannot be unpacked: {error}") from error
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise PartsError(f"the parts of {target.name} do not make the folder they were cut from; send them again")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar, atomic_folder(target) as partial:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or Path(member.name).name != member.name:
                raise PartsError(f"{member.name!r} is not a plain file of a flat folder")
            (partial / member.name).write_bytes(content.read())


def _find(part: dict[str, Any], folders: Sequence[Path]) -> Path:
    found = [folder / part["file"] for folder in folders if (folder / part["file"]).is_file()]
    if not found:
        raise PartsError(f"part {part['file']} is in none of {', '.join(str(folder) for folder in folders)}")
    if sha256_of(found[0]) != part["sha256"]:
        raise PartsError(f"{found[0]} is not the part that was written; send it again")
    return found[0]


def _tar(source: Path) -> bytes:
    """The folder as a tar whose bytes depend on names and contents alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(source.iterdir()):
            if not path.is_file():
                raise PartsError(f"{path} is not a plain file; only flat folders are cut into parts")
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return buffer.getvalue()


def _compress(chunk: bytes) -> bytes:
    return lzma.compress(chunk, format=lzma.FORMAT_XZ, filters=FILTERS)
