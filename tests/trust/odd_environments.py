"""Attack: `pmd-predict` where the locale, the home, the disks, the limits or Python's options are not the usual."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.tiny_bundle import write_tiny_bundle
from tests.trust.attack import Attack, Ground, Tally

ROOT = Path(__file__).resolve().parents[2]
PART = "portability"
HEAD, RELATION = "aspirin", "treats"
CODE = "import sys; sys.path.insert(0, {root!r}); from pmd.serving.cli import main; main(sys.argv[1:])"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
STRANGE = "heart ♥ naïve 心"


class Odd(NamedTuple):
    """One environment. unset: variables that are not there; place: a folder to put the bundle into."""

    name: str
    options: Sequence[str] = ()
    variables: dict[str, str] = {}  # noqa: RUF012  # never written to
    unset: Sequence[str] = ()
    place: str | bytes = "bundles"
    before: str | None = None
    """A shell command that goes before, in a mount namespace of its own."""


ODD = (
    Odd("LC_ALL=C", variables={"LC_ALL": "C"}),
    Odd("LC_ALL=POSIX", variables={"LC_ALL": "POSIX"}),
    Odd("an ASCII locale, UTF-8 mode off", variables=ASCII),
    Odd("a Latin-1 locale by Python's word", variables={"PYTHONIOENCODING": "latin-1"}),
    Odd("a locale that is not installed", variables={"LC_ALL": "xx_YY.UTF-8"}),
    Odd("no HOME", unset=("HOME",)),
    Odd("HOME that does not exist", variables={"HOME": "/nonexistent"}),
    Odd("HOME on a read-only disk", variables={"HOME": "/mnt"}, before="mount -t tmpfs -o ro none /mnt"),
    Odd("no variables at all", unset=tuple(os.environ)),
    Odd("no temporary folder", variables={"TMPDIR": "/nonexistent"}),
    Odd("no /dev/shm to write to", before="mount -t tmpfs -o ro none /dev/shm"),
    Odd("no /proc", before="umount -l /proc"),
    Odd("no /sys", before="umount -l /sys"),
    Odd("bundle on a read-only disk", before="mount --bind {bundle} {bundle} && mount -o remount,ro,bind {bundle}"),
    Odd("python -O", options=("-O",)),
    Odd("python -OO", options=("-OO",)),
    Odd("python -I", options=("-I",)),
    Odd("python -B -E -s", options=("-B", "-E", "-s")),
    Odd("python -X dev", options=("-X", "dev")),
    Odd("python -W error", options=("-W", "error")),
    Odd("python -bb", options=("-bb",)),
    Odd("hash seed 1", variables={"PYTHONHASHSEED": "1"}),
    Odd("a path with spaces", place="a folder  with spaces"),
    Odd("a path with other letters", place="bündel-模型"),
    Odd("a path with other letters, ASCII locale", place="bündel-模型", variables=ASCII),
    Odd("a path that is no text", place=b"b\xff\xfe"),
    Odd("a path with a line end", place="two\nlines"),
    Odd("a path of 200 letters", place="l" * 200),
    Odd("stdin closed", before="exec <&-"),
    Odd("a small stack", before="ulimit -s 512"),
    Odd("64 open files", before="ulimit -n 64"),
    Odd("no new files", before="ulimit -f 0"),
)


def odd_environments(ground: Ground) -> Tally:
    """The same answers to the bit; a text that the locale cannot hold is one line, or is written in ASCII."""
    tally = Tally()
    plain = write_tiny_bundle(ground.folder / "plain", precision="int8")
    wanted = _ended(_predict(Odd("usual"), plain, HEAD))
    if not isinstance(wanted, dict):
        raise RuntimeError(f"pmd-predict does not work here at all: {wanted}")
    for odd in ODD[: ground.count]:
        place = Path(os.fsdecode(os.path.join(os.fsencode(ground.folder), os.fsencode(odd.place)))) / "bundle"
        if not place.exists():
            shutil.copytree(plain, place)
        found = _ended(_predict(odd, place, HEAD))
        _tell(tally, odd.name, found, lambda found: found["predictions"] == wanted["predictions"])
        found = _ended(_predict(odd, place, STRANGE))
        if isinstance(found, str) and found.startswith("error: ") and "Unicode" in found and "ASCII" in odd.name:
            tally.saw("one line for a text that the locale cannot hold")
        else:
            _tell(tally, f"{odd.name}, {STRANGE}", found, lambda found: found["head"] == STRANGE)
    return tally


def _tell(tally: Tally, what: str, found: dict[str, Any] | str, right: Callable[[dict[str, Any]], bool]) -> None:
    if isinstance(found, str):
        if found.startswith("unshare"):
            tally.saw("not possible here: no mount namespaces")
        else:
            tally.failed(f"{what}: {found}")
    elif right(found):
        tally.saw("same answers")
    else:
        tally.failed(f"{what}: other answers, {json.dumps(found)[:200]}")


def _predict(odd: Odd, bundle: Path, head: str) -> subprocess.CompletedProcess[bytes]:
    code = CODE.format(root=str(ROOT))
    asked = [str(bundle), "--head", head, "--relation", RELATION, "--threads", "1"]
    command = [sys.executable, *odd.options, "-c", code, *asked]
    outside = {name: value for name, value in os.environ.items() if name not in odd.unset} | odd.variables
    if odd.before is not None:
        before = odd.before.format(bundle="'" + str(bundle) + "'")
        command = ["unshare", "-m", "sh", "-c", before + ' && exec "$@"', "sh", *command]
    return subprocess.run(command, env=outside, capture_output=True, timeout=120)


def _ended(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any] | str:
    """The JSON line, or the last line of stderr."""
    said = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines() or ["nothing on stderr"]
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.decode("utf-8", "surrogateescape").splitlines()[-1])
        return found
    if done.returncode == 2 and len(said) <= 2:
        return said[-1]
    return f"ended with {done.returncode} and {len(said)} lines: {said[-1][-200:]}"


ATTACKS = (
    Attack(
        "odd-environments",
        PART,
        "pmd-predict answers with the same bits under odd locales, homes, disks, paths, limits and Python options.",
        odd_environments,
        len(ODD),
        len(ODD),
        skip=lambda: None if sys.platform == "linux" else "its mounts and limits are Linux's",
    ),
)
